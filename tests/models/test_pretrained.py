"""Official checkpoints: layouts, parity with the official modules, refusals.

``tests/assets/golden_point_mae.npz`` holds what the official modules (Point-MAE at commit 7445a68, Point-CMAE at commit
bae2b0d) computed in float64 on a CPU, with plain PyTorch in place of their CUDA extensions, from the weights, clouds
and masks of ``formula.py``. Larger arrays are strided; the slices below are those of the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from formula import formula_clouds, formula_masks, formula_state
from layouts import COUNTS, LAYOUTS, projector
from torch import Tensor

from pc3d.cli.main import main
from pc3d.losses import patch_chamfer, token_contrast
from pc3d.models import (
    MaskedPointModel,
    PointClassifier,
    PointPartSegmenter,
    PointViT,
    PredictedCenterModel,
    load_official_encoder,
    load_official_model,
    to_official_state,
    warm_start,
)
from pc3d.models.official_names import encoder_slots

GOLDEN = Path(__file__).parents[1] / "assets" / "golden_point_mae.npz"
MASKS = [formula_masks(2, 64, 38, f"mask {k}") for k in (0, 1)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An official-looking file of each kind, wrapped as the official code wraps it."""
    folder = tmp_path_factory.mktemp("official")
    paths = {}
    for name, layout in LAYOUTS.items():
        state = formula_state(layout)
        content: dict[str, object] = {"base_model": state, "epoch": 300, "metrics": {"acc": np.float64(85.25)}}
        if name == "point_mae":
            content["base_model"] = {f"module.{key}": value for key, value in state.items()}
        if name == "part_segmentation":
            content = {"model_state_dict": state, "epoch": 3, "inctance_avg_iou": np.float64(0.86)}
        paths[name] = folder / f"{name}.pth"
        torch.save(content, paths[name])
    return paths


def small(**changes: Any) -> PointViT:
    return PointViT(24, 1, 6, num_groups=8, group_size=4, tokenizer_dims=(4, 8, 8), **changes)


def deep() -> PointViT:
    return PointViT(24, 12, 6, num_groups=8, group_size=4, tokenizer_dims=(4, 8, 8))


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN) as arrays:
        return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files}


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-5, atol=1e-5)


def networks() -> dict[str, torch.nn.Module]:
    return {
        "point_mae": MaskedPointModel(PointViT(), 1),
        "point_cmae": MaskedPointModel(PointViT(num_cls_tokens=2), 2),
        "full_40": PointClassifier(PointViT(num_cls_tokens=1), 40),
        "full_15": PointClassifier(PointViT(num_cls_tokens=1), 15, "mlp3"),
        "linear_40": PointClassifier(PointViT(num_cls_tokens=1), 40, "linear"),
        "part_segmentation": PointPartSegmenter(PointViT(num_groups=128)),
    }


def test_parameter_counts_are_the_published_ones() -> None:
    projector_parameters = 164_864  # built by the released Point-CMAE, used by nothing
    expected = {
        "point_mae": 29_006_432,
        "point_cmae": 36_354_240 - projector_parameters,
        "full_40": 22_099_752,
        "full_15": 22_093_327,
        "linear_40": 21_856_552,
        "part_segmentation": 27_063_730,
    }
    counts = {name: sum(p.numel() for p in model.parameters()) for name, model in networks().items()}
    assert counts == expected


@pytest.mark.parametrize("name", LAYOUTS)
def test_exported_names_and_shapes_are_the_official_ones(name: str) -> None:
    state = to_official_state(networks()[name])  # type: ignore[arg-type]
    assert {key: tuple(value.shape) for key, value in state.items()} == LAYOUTS[name]
    assert len(state) == COUNTS[name]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_file_survives_the_way_in_and_out(name: str, files: dict[str, Path]) -> None:
    model, report = load_official_model(files[name])
    state = to_official_state(model, module_prefix=True)
    unused = set(projector()) if name == "point_cmae" else set()
    assert set(report.unused) == unused
    assert report.fresh == []
    for key, value in formula_state(LAYOUTS[name]).items():
        if key not in unused:
            torch.testing.assert_close(state[f"module.{key}"], value, rtol=0, atol=0)
    assert not model.training


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PredictedCenterModel(small()), "no place for hidden_position, center_head.0.weight.* and 3 more"),
        (lambda: MaskedPointModel(small(add_position="once"), 1), "add_position='every_block' alone.*'once'"),
        (lambda: MaskedPointModel(small(position_features="sinusoids"), 1), "'coordinates' alone.*'sinusoids'"),
        (lambda: PointPartSegmenter(deep(), layers=(2, 5, 11)), r"reads blocks \(3, 7, 11\), this one \(2, 5, 11\)"),
        (lambda: MaskedPointModel(small(), 2), "a class token for each of two branches, this encoder has none"),
    ],
)
def test_nothing_is_exported_of_what_the_official_code_does_not_compute(build: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        to_official_state(build())


@torch.no_grad()
def test_point_mae_computes_what_the_official_module_does(files: dict[str, Path], golden: dict[str, Tensor]) -> None:
    model, _ = load_official_model(files["point_mae"])
    assert isinstance(model, MaskedPointModel)
    patches = model.encoder.tokenizer(formula_clouds(2, 1024))
    close(patches.centers[:, ::8], golden["mae_centers"])
    close(patches.tokens[:, ::4, ::6], golden["mae_tokens"])
    (branch,) = model.reconstruct(patches, MASKS[:1], 38)
    close(patch_chamfer(branch.predicted, branch.target), golden["mae_loss"])


@torch.no_grad()
def test_point_mae_encodes_visible_tokens_as_the_official_module_does(
    files: dict[str, Path], golden: dict[str, Tensor]
) -> None:
    encoder, _ = load_official_encoder(files["point_mae"])
    patches = encoder.tokenizer(formula_clouds(2, 1024))
    visible = ~MASKS[0]
    encoded, cls = encoder.encode_tokens(
        patches.tokens[visible].view(2, 26, 384), patches.centers[visible].view(2, 26, 3)
    )
    assert cls is None
    close(encoded[:, ::3, ::6], golden["mae_encoded"])


@torch.no_grad()
def test_point_cmae_computes_what_the_official_module_does(files: dict[str, Path], golden: dict[str, Tensor]) -> None:
    model, _ = load_official_model(files["point_cmae"])
    assert isinstance(model, MaskedPointModel)
    first, second = model(formula_clouds(2, 1024), MASKS)
    chamfer = patch_chamfer(first.predicted, first.target) + patch_chamfer(second.predicted, second.target)
    close(chamfer, golden["cmae_reconstruction"])
    contrast = token_contrast(first.features, second.features, MASKS[0] & MASKS[1], contrast="all_tokens")
    close(contrast, golden["cmae_contrast"])
    for branch in (0, 1):
        patches = model.encoder.tokenizer(formula_clouds(2, 1024))
        visible = ~MASKS[branch]
        encoded, _ = model.encoder.encode_tokens(
            patches.tokens[visible].view(2, 26, 384),
            patches.centers[visible].view(2, 26, 3),
            cls_index=torch.full((2,), branch),
        )
        close(encoded[:, ::3, ::6], golden[f"cmae_encoded_{branch}"])


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "array"),
    [("full_40", "mae_logits_full_40"), ("full_15", "cmae_logits_full_15"), ("linear_40", "cmae_logits_linear_40")],
)
def test_classifiers_compute_what_the_official_modules_do(
    name: str, array: str, files: dict[str, Path], golden: dict[str, Tensor]
) -> None:
    model, _ = load_official_model(files[name])
    close(model(formula_clouds(2, 1024)), golden[array])


@torch.no_grad()
def test_part_segmentation_computes_what_the_official_module_does(
    files: dict[str, Path], golden: dict[str, Tensor]
) -> None:
    model, _ = load_official_model(files["part_segmentation"])
    log_probability = model(formula_clouds(2, 2048), torch.tensor([3, 11]))
    assert log_probability.shape == (2, 2048, 50)
    torch.testing.assert_close(log_probability.exp().sum(-1), torch.ones(2, 2048))
    close(log_probability[:, ::32], golden["part_logprob"])


def test_encoder_of_a_pretraining_file_leaves_out_exactly_the_decoders_and_tokens(files: dict[str, Path]) -> None:
    encoder, report = load_official_encoder(files["point_cmae"])
    assert encoder.cls_token is None
    assert len(report.used) == len(LAYOUTS["point_cmae"]) - len(report.unused)
    assert len(report.unused) == 119  # what the official classifier, too, finds unexpected in this file
    assert not any(name.startswith("MAE_encoder.blocks") for name in report.unused)
    assert report.fresh == []
    assert "119 not used" in str(report)


def test_class_tokens_are_kept_on_request(files: dict[str, Path]) -> None:
    encoder, report = load_official_encoder(files["point_cmae"], keep_cls_tokens=True)
    expected = formula_state(LAYOUTS["point_cmae"])
    assert encoder.cls_token is not None
    assert encoder.cls_position is not None
    for row in (0, 1):
        torch.testing.assert_close(encoder.cls_token[row], expected[f"MAE_encoder.cls_token{row + 1}"].view(-1))
        torch.testing.assert_close(encoder.cls_position[row], expected[f"MAE_encoder.cls_pos{row + 1}"].view(-1))
    assert len(report.unused) == 119 - 4


@torch.no_grad()
@pytest.mark.parametrize("arguments", [{"cls_from": "branch1"}, {"keep_cls_tokens": True, "num_cls_tokens": 1}])
def test_a_classifier_starts_from_the_class_token_of_the_first_branch(
    arguments: dict[str, Any], files: dict[str, Path]
) -> None:
    encoder, report = load_official_encoder(files["point_cmae"], **arguments)
    expected = formula_state(LAYOUTS["point_cmae"])
    model = PointClassifier(encoder, 40)
    assert model.encoder.cls_token is not None
    assert model.encoder.cls_position is not None
    close(model.encoder.cls_token, expected["MAE_encoder.cls_token1"].view(1, -1))
    close(model.encoder.cls_position, expected["MAE_encoder.cls_pos1"].view(1, -1))
    assert report.fresh == []
    assert {"MAE_encoder.cls_token2", "MAE_encoder.cls_pos2"} <= set(report.unused)
    assert {"MAE_encoder.cls_token1", "MAE_encoder.cls_pos1"} <= set(report.used)


def test_class_tokens_that_a_file_does_not_have_are_reported_as_fresh(files: dict[str, Path]) -> None:
    _, report = load_official_encoder(files["point_cmae"], keep_cls_tokens=True, num_cls_tokens=3)
    assert report.fresh == ["cls_token[2]", "cls_position[2]"]
    _, report = load_official_encoder(files["point_cmae"], num_cls_tokens=1)
    assert report.fresh == ["cls_token", "cls_position"]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("point_mae", {"cls_from": "branch1"}, "is a point_mae checkpoint; cls_from=.*Point-CMAE"),
        ("point_cmae", {"cls_from": "branch1", "num_cls_tokens": 2}, "one class token, got .*num_cls_tokens=2"),
        ("point_cmae", {"cls_from": "branch1", "keep_cls_tokens": True}, "got keep_cls_tokens=True"),
        ("point_cmae", {"cls_from": "branch3"}, "cls_from must be .*got 'branch3'"),
    ],
)
def test_class_tokens_from_nowhere_are_refused(
    name: str, arguments: dict[str, Any], message: str, files: dict[str, Path]
) -> None:
    with pytest.raises(ValueError, match=message):
        load_official_encoder(files[name], **arguments)


@pytest.mark.parametrize(
    ("name", "cls_tokens", "unused"), [("point_mae", 0, 53), ("point_cmae", 0, 119), ("full_40", 1, 16)]
)
def test_commands_that_need_features_take_such_a_file(
    name: str, cls_tokens: int, unused: int, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of pre-training without class tokens; a classifier keeps its own."""
    xyz = formula_clouds(1, 1024).float()
    xyz -= (xyz.amin(1) + xyz.amax(1)) / 2
    xyz /= xyz.norm(dim=2).max()
    np.save(tmp_path / "a.npy", xyz[0].numpy())
    command = ["embed", "--encoder", str(files[name]), "--data", str(tmp_path), "--output", str(tmp_path / "out.npz")]
    assert main(command) == 0
    told = "".join(capsys.readouterr())
    assert f"156 tensors used, {unused} not used" in told or f"158 tensors used, {unused} not used" in told
    assert ("does not tell its number of patches: 64 are taken" in told) == (name == "full_40")
    encoder = PointViT(num_cls_tokens=cls_tokens, ignore_near_origin=True).eval()
    bare = {key.removeprefix("MAE_encoder."): value for key, value in formula_state(LAYOUTS[name]).items()}
    with torch.no_grad():
        for key, slot in encoder_slots(encoder, "", [""] * cls_tokens).items():
            target = encoder.state_dict()[slot.name]
            target.copy_(bare[key].reshape(target.shape))
        expected = encoder.encode(xyz)
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_allclose(found["features"], expected, atol=1e-4)


def test_commands_tell_what_to_do_with_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pt"
    torch.save({"state_dict": {"module.ppat.lift.0.weight": torch.zeros(2)}, "epoch": 3}, path)
    assert main(["probe", "--encoder", str(path)]) == 1
    said = capsys.readouterr().err
    assert "no state dict under any of base_model" in said
    assert "convert_openshape_checkpoint.py makes an encoder" in said


def test_a_classifier_on_a_pretrained_encoder_is_fresh_only_where_the_official_one_is(files: dict[str, Path]) -> None:
    encoder, report = load_official_encoder(files["point_mae"], num_cls_tokens=1)
    assert report.fresh == ["cls_token", "cls_position"]
    model = PointClassifier(encoder, 40)
    close(model.encoder.norm.weight, formula_state(LAYOUTS["point_mae"])["MAE_encoder.norm.weight"])


def test_warm_start_copies_the_decoder_into_both_branches(files: dict[str, Path]) -> None:
    model = MaskedPointModel(PointViT(num_cls_tokens=2), 2)
    report = warm_start(model, files["point_mae"])
    assert set(report.fresh) == {"encoder.cls_token", "encoder.cls_position"}
    expected = formula_state(LAYOUTS["point_mae"])
    for decoder in model.branch_decoders():
        close(decoder.mask_token, expected["mask_token"].view(-1))
        close(decoder.head.weight, expected["increase_dim.0.weight"][..., 0])
    with pytest.raises(ValueError, match="warm_start takes Point-MAE"):
        warm_start(model, files["linear_40"])


@torch.no_grad()
def test_two_branches_without_class_token_are_the_sum_of_two_point_maes(files: dict[str, Path]) -> None:
    both = MaskedPointModel(PointViT(ignore_near_origin=True), 2).eval()
    warm_start(both, files["point_mae"])
    one, _ = load_official_model(files["point_mae"])
    assert isinstance(one, MaskedPointModel)
    xyz = formula_clouds(2, 1024)
    total = sum(patch_chamfer(branch.predicted, branch.target) for branch in both(xyz, MASKS))
    separate = sum(patch_chamfer(b.predicted, b.target) for mask in MASKS for b in one(xyz, [mask]))
    torch.testing.assert_close(total, separate, rtol=1e-6, atol=0)


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "file.pth"
    torch.save(content, path)
    return path


def test_a_wrong_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    state = formula_state(LAYOUTS["point_mae"])
    state["mask_token"] = torch.zeros(1, 1, 256)
    with pytest.raises(ValueError, match=r"mask_token is \(1, 1, 256\), expected \(1, 1, 384\)"):
        load_official_model(write(tmp_path, {"base_model": state}))
    with pytest.raises(ValueError, match=r"mask_token is \(1, 1, 256\), expected \(1, 1, 384\)"):
        load_official_encoder(write(tmp_path, {"base_model": state}))


def test_missing_and_unknown_tensors_are_refused_by_name(tmp_path: Path) -> None:
    state = formula_state(LAYOUTS["linear_40"])
    del state["blocks.blocks.11.attn.proj.bias"]
    state["gate.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"missing blocks\.blocks\.11\.attn\.proj\.bias, unknown gate\.weight"):
        load_official_model(write(tmp_path, {"base_model": state}))


def test_only_a_leading_module_is_stripped(tmp_path: Path) -> None:
    state = formula_state(LAYOUTS["linear_40"])
    state["module.submodule.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"unknown submodule\.weight"):
        load_official_model(write(tmp_path, {"base_model": state}))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["transformer_q.cls_token", "transformer_q.encoder.first_conv.0.weight"], "Point-BERT"),
        (["reduce_dim.weight", "encoder.first_conv.0.weight", "cls_head_finetune.0.weight"], "reduce_dim"),
        (["MAE_encoder.mask_pos_token", "MAE_decoder.norm.weight", "pred_pos_proj.0.weight"], "PCP-MAE"),
        (["codebook", "encoder.first_conv.0.weight", "dgcnn_1.layer1.0.weight"], "discrete VAE"),
        (["conv1.weight", "fc.weight"], "none of the known checkpoints.*conv1.weight, fc.weight"),
    ],
)
def test_files_of_other_architectures_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    path = write(tmp_path, {"base_model": {name: torch.zeros(2) for name in names}})
    for load in (load_official_model, load_official_encoder):
        with pytest.raises(ValueError, match=message):
            load(path)


class Innocent:
    """Any class whose pickle would have to be run."""


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"base_model": formula_state(LAYOUTS["linear_40"]), "config": Innocent()})
    with pytest.raises(ValueError, match="could run code"):
        load_official_model(path)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path, files: dict[str, Path]) -> None:
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(files["linear_40"].read_bytes()[:100_000])
    with pytest.raises(ValueError, match="not a readable PyTorch checkpoint"):
        load_official_model(truncated)
    text = tmp_path / "page.pth"
    text.write_text("<html>Too many requests</html>")
    with pytest.raises(ValueError, match="checkpoint"):
        load_official_model(text)
    with pytest.raises(ValueError, match="no state dict under any of base_model"):
        load_official_model(write(tmp_path, {"weights": 3}))
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_official_model(tmp_path / "absent.pth")
