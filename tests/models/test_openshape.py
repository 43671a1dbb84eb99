"""OpenShape's encoders: published sizes, every number against a plain version, what must not matter, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from formula import formula_state
from openshape_plain import ball, fcnn, point_bert, sparse_conv
from torch import Tensor, nn

from pc3d.data import Household, Normalize
from pc3d.models import (
    OpenShapeFCNN,
    OpenShapePointBERT,
    OpenShapeSparseConv,
    load_encoder,
    save_encoder,
    to_official_openshape_state,
)
from pc3d.models.openshape import to_frame

SMALL: dict[str, Any] = {"embed_dim": 24, "width": 128, "depth": 2, "num_heads": 2, "mlp_dim": 200, "patch_dim": 48}
PATCHES: dict[str, Any] = {"num_groups": 12, "radius": 0.4, "group_size": 10}
SPARSE: dict[str, Any] = {"embed_dim": 24, "layers": (1, 2, 1, 1), "hidden_dim": 16, "voxel_size": 0.15}


def transformer(**changes: Any) -> OpenShapePointBERT:
    torch.manual_seed(0)
    return settled(OpenShapePointBERT(**{**SMALL, **PATCHES, **changes}))


def sparse(**changes: Any) -> OpenShapeSparseConv:
    torch.manual_seed(0)
    return settled(OpenShapeSparseConv(**{**SPARSE, **changes}))


def small_convolutions(**changes: Any) -> OpenShapeFCNN:
    torch.manual_seed(0)
    return settled(
        OpenShapeFCNN(**{"embed_dim": 24, "merged_dim": 12, "hidden_dim": 16, "voxel_size": 0.15, **changes})
    )


def settled(model: Any) -> Any:
    """In evaluation mode, with batch norms that change something."""
    state = model.state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items() if "norm" in name or "running" in name}
    model.load_state_dict({**state, **formula_state(shapes)})
    return model.eval()


@pytest.fixture(scope="module")
def clouds() -> tuple[Tensor, Tensor]:
    """Two real objects, 200 coloured points each."""
    household, normalize = Household("test", num_points=200), Normalize()
    chosen = [normalize(household[i], torch.Generator()) for i in (0, 60)]
    colors = [cloud.rgb for cloud in chosen if cloud.rgb is not None]
    return torch.stack([cloud.xyz for cloud in chosen]), torch.stack(colors)


# ---- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("5m", 5_100_768),
        ("13m", 13_346_880),
        ("26m", 25_954_368),
        ("32m", 32_326_080),
        ("72m", 72_070_336),
        ("171m", 171_262_144),
    ],
)
def test_parameters_of_the_transformer(size: str, count: int) -> None:
    with torch.device("meta"):
        model = OpenShapePointBERT.of_size(size)
    assert sum(p.numel() for p in model.parameters()) == count
    if size == "32m":
        assert model.config == OpenShapePointBERT(**model.config).config
        with torch.device("meta"):
            assert OpenShapePointBERT().config == model.config


@pytest.mark.parametrize(
    ("changes", "count"), [({"embed_dim": 768}, 25_691_712), ({"embed_dim": 512, "project": False}, 25_297_728)]
)
def test_parameters_of_the_models_for_generation(changes: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        model = OpenShapePointBERT.of_size("26m", num_groups=64, radius=0.4, group_size=256, **changes)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(("size", "count"), [("29m", 29_045_760), ("34m", 33_747_840), ("41m", 41_327_104)])
def test_parameters_of_the_convolutions(size: str, count: int) -> None:
    with torch.device("meta"):
        model = OpenShapeSparseConv.of_size(size)
    assert sum(p.numel() for p in model.parameters()) == count


def test_parameters_of_the_small_convolutions() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in OpenShapeFCNN().parameters()) == 5_296_544


# ---- numbers -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_transformer_is_its_description(clouds: tuple[Tensor, Tensor]) -> None:
    model, (xyz, rgb) = transformer().double(), clouds
    state = to_official_openshape_state(model)
    found = model.encode(xyz.double(), rgb=rgb.double())
    assert found.shape == (2, 24)
    for b in range(2):
        wanted = point_bert(state, xyz[b], rgb[b], 12, 0.4, 10, 2)
        torch.testing.assert_close(found[b], wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.float().encode(xyz, rgb=rgb), found.float(), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_convolutions_are_their_description(clouds: tuple[Tensor, Tensor]) -> None:
    model, (xyz, rgb) = sparse().double(), clouds
    xyz, rgb = xyz[:, ::2], rgb[:, ::2]
    state = to_official_openshape_state(model)
    found = model.encode(xyz.double(), rgb=rgb.double())
    assert (xyz < 0).any()  # the rule for halving negative coordinates matters
    for b in range(2):
        wanted = sparse_conv(state, xyz[b], rgb[b], 0.15)
        torch.testing.assert_close(found[b], wanted, rtol=1e-8, atol=1e-8)


@torch.no_grad()
def test_the_small_convolutions_are_their_description(clouds: tuple[Tensor, Tensor]) -> None:
    model, (xyz, rgb) = small_convolutions().double(), clouds
    xyz, rgb = xyz[:, ::2], rgb[:, ::2]
    found = model.encode(xyz.double(), rgb=rgb.double())
    for b in range(2):
        wanted = fcnn(model.state_dict(), xyz[b], rgb[b], 0.15)
        torch.testing.assert_close(found[b], wanted, rtol=1e-8, atol=1e-8)


def test_patches_keep_the_first_points_of_the_ball_and_its_rim() -> None:
    xyz = torch.tensor([[[0.0, 0, 0], [0.5, 0, 0], [0.25, 0, 0], [0, 0.50001, 0], [0, 0, 0.125], [1, 0, 0]]])
    encoder = transformer(num_groups=1, radius=0.5, group_size=4)
    _, patches = encoder.cut(xyz)
    assert patches[0, 0, :, 0].tolist() == [0.0, 0.5, 0.25, 0.0]  # a point at exactly the radius is in
    assert patches[0, 0, 3, 2] == 0.125
    _, short = transformer(num_groups=1, radius=0.2, group_size=4).cut(xyz)
    assert short[0, 0, :, 2].tolist() == [0.0, 0.125, 0.0, 0.0]  # the first again, which is the centre here
    _, nearest = transformer(num_groups=1, radius=0.5, group_size=2, neighbors="nearest").cut(xyz)
    assert nearest[0, 0, 1, 2] == 0.125


@torch.no_grad()
def test_order_matters_only_where_balls_overflow(clouds: tuple[Tensor, Tensor]) -> None:
    xyz, rgb = clouds
    order = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randperm(199) + 1])  # the first centre stays
    fullest = max(len(set(ball(xyz[0], center, 0.4, 200))) for center in xyz[0])
    assert fullest > 10
    for size, same in ((fullest, True), (10, False)):
        model = transformer(group_size=size)
        before, after = model.encode(xyz, rgb=rgb), model.encode(xyz[:, order], rgb=rgb[:, order])
        assert torch.allclose(before, after, atol=1e-4) is same


@pytest.mark.parametrize("build", [transformer, sparse, small_convolutions])
@torch.no_grad()
def test_evaluation_is_a_function_of_each_cloud(build: Any, clouds: tuple[Tensor, Tensor]) -> None:
    model, (xyz, rgb) = build(), clouds
    found = model.encode(xyz, rgb=rgb)
    assert torch.equal(model.encode(xyz, rgb=rgb), found)
    torch.testing.assert_close(model.encode(xyz.flip(0), rgb=rgb.flip(0)).flip(0), found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.encode(xyz[:1], rgb=rgb[:1]), found[:1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-2)


@pytest.mark.parametrize("build", [transformer, sparse, small_convolutions])
@torch.no_grad()
def test_colors_in_the_place_of_the_pooling_are_refused(build: Any, clouds: tuple[Tensor, Tensor]) -> None:
    """``encoder(xyz, rgb)`` takes them there, ``encode`` takes a pooling that it ignores."""
    xyz, rgb = clouds
    with pytest.raises(TypeError, match="rgb="):
        build().encode(xyz, rgb)
    assert torch.equal(build().encode(xyz, rgb=rgb), build()(xyz, rgb))


@pytest.mark.parametrize("build", [transformer, sparse, small_convolutions])
@torch.no_grad()
def test_no_clouds_have_no_features(build: Any) -> None:
    encoder, none = build().eval(), torch.zeros(0, 64, 3)
    assert encoder.encode(none).shape == (0, encoder.embed_dim)
    if build is not transformer:
        assert encoder.local_features(none).shape[:2] == (0, 64)


@pytest.mark.parametrize("build", [transformer, sparse, small_convolutions])
@torch.no_grad()
def test_missing_colors_are_grey(build: Any, clouds: tuple[Tensor, Tensor]) -> None:
    model, (xyz, rgb) = build(), clouds
    assert torch.equal(model.encode(xyz), model.encode(xyz, rgb=torch.full_like(xyz, 0.4)))
    assert not torch.allclose(model.encode(xyz), model.encode(xyz, rgb=rgb))


def test_random_starts_come_from_the_default_generator(clouds: tuple[Tensor, Tensor]) -> None:
    model, (xyz, _) = transformer(start="random"), clouds
    torch.manual_seed(1)
    first, second = model.cut(xyz)[0], model.cut(xyz)[0]
    torch.manual_seed(1)
    assert torch.equal(model.cut(xyz)[0], first)
    assert not torch.equal(first, second)


def test_frames() -> None:
    xyz = torch.tensor([[1.0, 2.0, 3.0]])
    # An official y-up point (x, h, d) is (x, -d, h) right-handed and z up. Exchanging its columns gives (x, d, h).
    official = torch.tensor([[1.0, 3.0, -2.0]])
    assert torch.equal(to_frame(xyz, "mirrored"), official[:, [0, 2, 1]])
    assert torch.equal(to_frame(xyz, "y_up"), official)
    assert to_frame(xyz, "z_up") is xyz
    basis = torch.eye(3)
    determinants = {axes: float(torch.det(to_frame(basis, axes))) for axes in ("z_up", "mirrored", "y_up")}  # type: ignore[arg-type]
    assert determinants == {"z_up": 1.0, "mirrored": -1.0, "y_up": 1.0}


@pytest.mark.parametrize("build", [transformer, sparse, small_convolutions])
@torch.no_grad()
def test_the_frame_is_turned_before_anything_is_computed(build: Any, clouds: tuple[Tensor, Tensor]) -> None:
    xyz, rgb = clouds
    for axes in ("mirrored", "y_up"):
        torch.testing.assert_close(
            build(axes=axes).encode(xyz, rgb=rgb), build().encode(to_frame(xyz, axes), rgb=rgb), rtol=1e-5, atol=1e-5
        )


# ---- training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [transformer, sparse, small_convolutions])
def test_all_parameters_learn(build: Any, clouds: tuple[Tensor, Tensor]) -> None:
    model, (xyz, rgb) = build().train(), clouds
    model.encode(xyz, rgb=rgb).square().mean().backward()
    biases_before_norms = {f"patches.{i}.bias" for i in (0, 3, 6)}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad.abs().max() > 0) == (name not in biases_before_norms), name


@pytest.mark.parametrize(("build", "changes"), [(transformer, {}), (sparse, {"dropout": 0.0})])
def test_two_objects_are_told_apart(build: Any, changes: dict[str, Any], clouds: tuple[Tensor, Tensor]) -> None:
    model, (xyz, rgb) = build(**changes).train(), clouds
    xyz, rgb = (torch.cat([value[:, ::2], value[:, 1::2]]) for value in (xyz, rgb))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model.encode(xyz, rgb=rgb), torch.tensor([0, 1, 0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_initial_convolutions_have_the_published_spread() -> None:
    model = OpenShapeSparseConv(24, (1, 1, 1, 1), hidden_dim=64)
    assert model.stem.conv.weight.std().item() == pytest.approx((2 / (125 * 32)) ** 0.5, rel=0.05)
    shortcut = model.levels[3][0].shortcut[0]  # type: ignore[index]
    assert shortcut.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)


@pytest.mark.parametrize("build", [transformer, sparse, small_convolutions])
@torch.no_grad()
def test_saved_and_loaded(build: Any, clouds: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    model, (xyz, rgb) = build(axes="mirrored"), clouds
    save_encoder(model, tmp_path)
    loaded = load_encoder(tmp_path, expect=type(model))
    assert loaded.config == model.config
    assert torch.equal(loaded.encode(xyz, rgb=rgb), model.encode(xyz, rgb=rgb))


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"num_heads": 3}, "embed_dim must be a multiple of num_heads"),
        ({"radius": 0.0}, "radius must be positive, got 0.0"),
        ({"project": False}, "project=False gives embeddings of width=128, got embed_dim=24"),
        ({"neighbors": "any"}, "neighbors must be one of 'first', 'nearest', got 'any'"),
        ({"start": "last"}, "start must be one of 'first', 'random', got 'last'"),
        ({"axes": "x_up"}, "axes must be one of 'z_up', 'mirrored', 'y_up', got 'x_up'"),
    ],
)
def test_bad_transformers_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transformer(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (1, 1, 1)}, "layers must be four positive numbers of blocks"),
        ({"hidden_dim": 0}, "embed_dim and hidden_dim must be at least 1, got 24 and 0"),
        ({"voxel_size": -1.0}, r"voxel_size must be positive, got -1\.0"),
        ({"axes": "up"}, "axes must be one of"),
    ],
)
def test_bad_convolutions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sparse(**changes)


def test_bad_clouds_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="size must be one of 5m, 13m, 26m, 32m, 72m, 171m, got 'big'"):
        OpenShapePointBERT.of_size("big")
    with pytest.raises(ValueError, match="size must be one of 29m, 34m, 41m, got 'big'"):
        OpenShapeSparseConv.of_size("big")
    with pytest.raises(ValueError, match="channels must be five positive widths, got"):
        small_convolutions(channels=(8, 8))
    for model in (transformer(), sparse(), small_convolutions()):
        with pytest.raises(ValueError, match=r"xyz must have shape \(B, N, 3\), got \(5, 3\)"):
            model.encode(torch.zeros(5, 3))
        with pytest.raises(ValueError, match=r"rgb must have the shape of xyz, \(1, 20, 3\), got \(1, 5, 3\)"):
            model.encode(torch.zeros(1, 20, 3), rgb=torch.zeros(1, 5, 3))
    with pytest.raises(ValueError, match="clouds have 5 points, fewer than num_groups=12"):
        transformer().encode(torch.zeros(1, 5, 3))
    with pytest.raises(ValueError, match="clouds must have points, got none"):
        sparse().encode(torch.zeros(1, 0, 3))
