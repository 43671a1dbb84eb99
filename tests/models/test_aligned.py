"""The encoder beside its target spaces: joint vectors, and refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from pc3d.models import (
    AlignedShapeEncoder,
    OpenShapePointBERT,
    PointViT,
    as_aligned,
    load_encoder,
    save_encoder,
)


def encoder() -> OpenShapePointBERT:
    torch.manual_seed(0)
    return OpenShapePointBERT(16, 64, 1, 1, 64, 16, 8, 0.5, 8)


def unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.mark.parametrize(
    "changes", [{}, {"text_dim": 6, "image_dim": 10}, {"text_dim": 6, "image_dim": 10, "project_targets": True}]
)
@torch.no_grad()
def test_products_of_joint_vectors_are_cosines(changes: dict[str, Any]) -> None:
    aligned = AlignedShapeEncoder(encoder(), **changes).eval()
    embedding = torch.randn(4, 16)
    texts, images = torch.randn(3, aligned.text_dim), torch.randn(5, aligned.image_dim)
    joint = aligned.joint(embedding)
    assert joint.shape == (4, aligned.joint_dim)
    for vectors in (joint, aligned.joint_text(texts), aligned.joint_image(images)):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    of_text = aligned.joint_scale * joint @ aligned.joint_text(texts).T
    of_image = aligned.joint_scale * joint @ aligned.joint_image(images).T
    for i in range(4):
        side = aligned.in_text_space(embedding[i : i + 1])
        torch.testing.assert_close(of_text[i], cosine_similarity(side, aligned.text_targets(texts)))
        side = aligned.in_image_space(embedding[i : i + 1])
        torch.testing.assert_close(of_image[i], cosine_similarity(side, aligned.image_targets(images)))


def test_a_shared_space_is_the_encoders_own() -> None:
    aligned = as_aligned(encoder())
    assert aligned.shared
    assert (aligned.joint_dim, aligned.joint_scale) == (16, 1.0)
    features = torch.randn(2, 16)
    assert torch.equal(aligned.joint_text(features), unit(features))
    assert torch.equal(aligned.joint(features), unit(features))
    assert as_aligned(aligned) is aligned
    assert AlignedShapeEncoder(encoder(), 6, 10).joint_scale == math.sqrt(2)


@pytest.mark.parametrize(("side", "other"), [("text", "image"), ("image", "text")])
@torch.no_grad()
def test_a_head_that_was_not_trained_takes_no_part(side: str, other: str) -> None:
    aligned = AlignedShapeEncoder(encoder(), 6, 10, **{f"{side}_space": "x:y"}).eval()
    width = {"text": 6, "image": 10}[side]
    assert (aligned.sides, aligned.joint_dim, aligned.joint_scale) == ((side,), width, 1.0)
    embedding, features = torch.randn(4, 16), torch.randn(3, width)
    head = getattr(aligned, f"{side}_head")
    torch.testing.assert_close(aligned.joint(embedding), unit(embedding @ head.weight.T + head.bias))
    joint_side = aligned.joint_text if side == "text" else aligned.joint_image
    torch.testing.assert_close(joint_side(features), unit(features))
    told = rf"aligned with x:y alone, its {other} head was not trained"
    with pytest.raises(ValueError, match=told):
        (aligned.joint_image if side == "text" else aligned.joint_text)(torch.randn(1, 16 - width))
    with pytest.raises(ValueError, match=told):
        aligned.view(other)  # type: ignore[arg-type]
    aligned.name_spaces("a:b", "c:d")
    assert (aligned.sides, aligned.joint_dim) == (("text", "image"), 16)


@torch.no_grad()
def test_saved_and_loaded(tmp_path: Path) -> None:
    aligned = AlignedShapeEncoder(encoder(), 6, 10, True, "offline:minilm", "offline:efficientnet-lite0", 20.0).eval()
    save_encoder(aligned, tmp_path)
    loaded = load_encoder(tmp_path, expect=AlignedShapeEncoder)
    assert loaded.config == aligned.config
    assert loaded.logit_scale.item() == pytest.approx(20.0)
    xyz, rgb = torch.rand(2, 30, 3), torch.rand(2, 30, 3)
    assert torch.equal(loaded.encode(xyz, rgb=rgb), aligned.encode(xyz, rgb=rgb))
    assert not torch.equal(loaded.encode(xyz, rgb=rgb), loaded.encode(xyz))


def test_colors_are_read_where_the_encoder_within_reads_them() -> None:
    without = AlignedShapeEncoder(PointViT(16, 1, 1, num_groups=8, group_size=4, num_points=32), 6, 10)
    for aligned, reads in ((AlignedShapeEncoder(encoder()), True), (without, False)):
        assert (aligned.reads_rgb, aligned.view("joint").reads_rgb) == (reads, reads)


def test_what_is_not_aligned_is_refused() -> None:
    with pytest.raises(TypeError, match="a PointViT was not aligned with texts and pictures: train it with"):
        as_aligned(PointViT(16, 1, 2))
    with pytest.raises(TypeError, match=r"must have encode\(\) and embed_dim, got ReLU"):
        AlignedShapeEncoder(torch.nn.ReLU())
    aligned = AlignedShapeEncoder(encoder(), 6, 10, text_space="offline:minilm", image_space="x:y")
    with pytest.raises(ValueError, match=r"text features must be \(M, 6\), those of offline:minilm .* got \(2, 5\)"):
        aligned.joint_text(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"image features must be \(M, 10\)"):
        aligned.joint_image(torch.zeros(2, 6))

    class Own(torch.nn.Module):
        embed_dim = 4

        def encode(self, xyz: torch.Tensor) -> torch.Tensor:
            return xyz[:, 0]

    with pytest.raises(TypeError, match=r"encoder must be one of PointViT, .*an ObjectEncoder .*; got Own"):
        save_encoder(AlignedShapeEncoder(Own()), "nowhere")
