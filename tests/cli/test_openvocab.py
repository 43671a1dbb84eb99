"""From scenes with lifted features to points named by texts, with stand-ins for towers that a moment can distil."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pc3d.cli.main import main
from pc3d.data import LiftedSet, Rooms, SceneDataModule, Selection, SphereCrop
from pc3d.image import ImageTower, JointPair, Preprocessing, TextTower, precompute
from pc3d.methods import DenseDistillation, Optimisation, pretrain
from pc3d.models import DistilledEncoder, SparseUNet, save_encoder
from pc3d.tasks import joint_teacher, load_segmenter, open_vocabulary_segmenter

WORDS = {"a floor": (0.0, 0.0, 1.0), "a ceiling": (0.0, 0.0, -1.0)}


class Normals(ImageTower):
    """Its dense features are said to be normals of surfaces; nothing is computed."""

    def __init__(self, joint: bool = True) -> None:
        plain = Preprocessing(size=8, mean=(0, 0, 0), std=(1, 1, 1))
        super().__init__(
            "stand-in:normals",
            plain,
            width=3,
            dense_width=3,
            stride=1,
            text_aligned=True,
            dense_text_aligned=joint,
        )
        self.empty = torch.nn.Parameter(torch.zeros(0))

    def _dense(self, pixels: Tensor) -> Tensor:
        return pixels


class Directions(TextTower):
    """Knows which way a floor and a ceiling face."""

    def __init__(self) -> None:
        super().__init__("stand-in:directions", 3)
        self.empty = torch.nn.Parameter(torch.zeros(0))

    def _encode(self, texts: list[str]) -> Tensor:
        return torch.tensor([WORDS[text] for text in texts])


def pair(joint: bool = True) -> JointPair:
    return JointPair(Normals(joint), Directions(), 20.0, "contrastive")


class StoredNormals:
    """Extractor in place of lifting: normals, of every second point."""

    def __call__(self, content: Any) -> dict[str, Tensor]:
        normal = torch.from_numpy(content)
        shown = torch.arange(len(normal)) % 2 == 0
        return {"feature": normal[shown], "num_views": shown.long()}

    def identity(self) -> dict[str, Any]:
        return {"name": "stand-in:normals", "weights": Normals().weights_hash()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that distilled normals into a U-Net that does not read them."""
    folder = tmp_path_factory.mktemp("run")
    rooms = Selection(Rooms("train"), range(4))
    items = ((cloud.meta["id"], cloud.normal.numpy()) for cloud in map(rooms.load, range(4)))  # type: ignore[union-attr]
    stored = precompute(items, StoredNormals(), folder / "lifted")
    torch.manual_seed(0)
    method = DenseDistillation(
        SparseUNet((12, 24), (1, 1), voxel_size=0.2, signals="xyz"),
        teacher_dim=3,
        teacher="stand-in:normals",
        decoder=False,
        optimisation=Optimisation(learning_rate=1e-2, warmup_epochs=1),
    )
    data = SceneDataModule(train=LiftedSet(rooms, stored, transform=SphereCrop(8000)), batch_size=2)
    quiet: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    pretrain(method, data, folder / "run", max_epochs=12, log_every_n_steps=1, **quiet)
    return folder / "run"


def test_points_are_named_by_texts_without_labels(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr("pc3d.tasks.open_vocabulary.load_pair", lambda *names: asked.append(names) or pair())
    classes = tmp_path / "classes.txt"
    classes.write_text("ground\ta floor\nabove\ta ceiling\n")
    model = tmp_path / "model"
    options = ["segment", "openvocab", str(run), "--classes", str(classes), "--templates", "none"]
    assert main([*options, "--output", str(model)]) == 0
    said = capsys.readouterr().out
    assert f"model written to {model}: 2 classes by stand-in:directions\n" in said
    assert f"pc3d segment predict {model} SCENE... --output FOLDER" in said
    assert asked == [("stand-in:normals", None)]
    assert main([*options, "--output", str(model)]) == 1
    assert "holds a model: add --overwrite" in capsys.readouterr().err
    assert main([*options, "--output", str(tmp_path / "other"), "--teacher", "stand-in:others"]) == 0
    assert "warning: teacher: the encoder was trained with stand-in:normals" in capsys.readouterr().err
    assert load_segmenter(model).classes == ("ground", "above")
    # A room of the test split, through the verb that any trained model goes through.
    cloud = Rooms("test")[0]
    scene = tmp_path / "room.npz"
    np.savez(scene, xyz=cloud.xyz.numpy())
    assert main(["segment", "predict", str(model), str(scene), "--output", str(tmp_path / "named")]) == 0
    with np.load(tmp_path / "named" / "room.npz") as named:
        label = torch.from_numpy(named["label"].astype(np.int64))
    assert cloud.segment is not None
    floor, ceiling = (cloud.segment == Rooms("test").classes.index(name) for name in ("floor", "ceiling"))
    assert (label[floor] == 0).float().mean() > 0.9
    assert (label[ceiling] == 1).float().mean() > 0.9


def test_the_segmenter_says_scaled_cosines(run: Path) -> None:
    from pc3d import load_encoder
    from pc3d.data import collate

    distilled = load_encoder(run, expect=DistilledEncoder)
    vectors = torch.tensor([WORDS["a floor"], (3.0, 4.0, 0.0)])
    batch = collate([Rooms("test")[0].select(slice(500))])
    with torch.no_grad():
        logits = open_vocabulary_segmenter(distilled, ["up", "aside"], vectors, 7.0)(batch)
        places = distilled.in_space(distilled.point_features(batch)).double()
    unit = places / places.norm(dim=1, keepdim=True)
    expected = 7 * unit @ torch.tensor([[0, 0, 1], [0.6, 0.8, 0]], dtype=torch.float64).T
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"vectors must be \(3, 3\), one of the teacher's space .* got \(2, 3\)"):
        open_vocabulary_segmenter(distilled, ["a", "b", "c"], vectors)


def encoder(space: str, width: int = 3) -> DistilledEncoder:
    return DistilledEncoder(SparseUNet((4,), (1,), signals="xyz"), width, space)


def test_teachers_that_are_not_joint_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("offline:xfeat", "offline:efficientnet-lite0", "timm:vit_small_patch14_dinov2.lvd142m"):
        with pytest.raises(ValueError, match=f"{name} is not joint with texts .* such as open_clip:ViT-B-16"):
            joint_teacher(encoder(name))
    with pytest.raises(ValueError, match=r"in no teacher's space: .* distil with objective cosine or embed_dim null"):
        joint_teacher(encoder(""))
    monkeypatch.setattr("pc3d.tasks.open_vocabulary.load_pair", lambda *_: pair(joint=False))
    with pytest.raises(ValueError, match="dense features of a:b are not in the space of its texts"):
        joint_teacher(encoder("a:b"))
    monkeypatch.setattr("pc3d.tasks.open_vocabulary.load_pair", lambda *_: pair())
    with pytest.raises(ValueError, match="has features of width 3, the encoder was distilled from features of width 5"):
        joint_teacher(encoder("", width=5), "a:b")


def test_other_weights_than_those_of_the_features_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pc3d import load_encoder

    distilled = load_encoder(run, expect=DistilledEncoder)
    assert distilled.space_weights == Normals().weights_hash()
    other = pair()
    other.image.register_buffer("more", torch.zeros(1))
    monkeypatch.setattr("pc3d.tasks.open_vocabulary.load_pair", lambda *_: other)
    with pytest.raises(ValueError, match=r"stand-in:normals has other weights here .*SHA-256 .*\(weights\), or name"):
        joint_teacher(distilled)
    assert joint_teacher(distilled, "stand-in:normals") is other  # the user's own word


def test_an_encoder_that_was_not_distilled_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_encoder(SparseUNet((4,), (1,)), tmp_path / "encoder")
    assert main(["segment", "openvocab", str(tmp_path), "--classes", "a,b", "--output", str(tmp_path / "out")]) == 1
    assert "holds a SparseUNet, but a DistilledEncoder is needed here" in capsys.readouterr().err
