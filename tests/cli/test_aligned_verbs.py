"""zeroshot, index and search through ``main([...])``, with towers of known vectors in place of CLIP's."""

from __future__ import annotations

import functools
import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import pc3d.image
from pc3d.cli._alignment import points_for, read_classes, shapes, templates_of, warn_of_other_tower
from pc3d.cli._judging import features_of
from pc3d.cli.main import main
from pc3d.data import (
    AlignedShards,
    BadFileError,
    FolderDataset,
    Household,
    MissingDataError,
    Normalize,
    OpenShapeTests,
    Targets,
)
from pc3d.data.aligned_files import write_index, write_shard
from pc3d.evaluation import ShapeIndex
from pc3d.image import TextTower
from pc3d.models import AlignedShapeEncoder, OpenShapePointBERT, PointViT, load_encoder, save_encoder

POINTS = 2048


def vector(word: str, width: int) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))


class Words(TextTower):
    """A text is the sum of random vectors of its words."""

    def __init__(self, width: int = 6) -> None:
        super().__init__("fake:words", width)
        self.register_buffer("nothing", torch.zeros(1))

    def _encode(self, texts: list[str]) -> Tensor:
        rows = [[vector(word, self.width) for word in text.lower().strip(".").split()] for text in texts]
        return torch.stack([torch.stack(words).sum(0) for words in rows])


class Pictures:
    """A picture is its mean colour, and so on."""

    name, width = "fake:pictures", 10

    def encode(self, pictures: list[Any]) -> Tensor:
        means = [torch.from_numpy(picture[..., :3].astype(np.float32)).mean((0, 1)) for picture in pictures]
        return torch.stack([torch.cat([mean, torch.ones(7)]) for mean in means])


@pytest.fixture(autouse=True)
def towers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    opened: list[str] = []

    def text(name: str) -> Any:
        opened.append(name)
        return Words(5 if name == "fake:narrow" else 6)

    def image(name: str) -> Any:
        opened.append(name)
        return Pictures()

    monkeypatch.setattr(pc3d.image, "load_text_tower", text)
    monkeypatch.setattr(pc3d.image, "load_image_tower", image)
    return opened


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    inner = OpenShapePointBERT(16, 64, 1, 1, 64, 16, 8, 0.5, 8)
    aligned = AlignedShapeEncoder(inner, 6, 10, text_space="fake:words", image_space="fake:pictures")
    return str(save_encoder(aligned.eval(), tmp_path_factory.mktemp("aligned")))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six objects of the embedded set as files of coloured points."""
    root, household = tmp_path_factory.mktemp("files"), Household("test", num_points=200)
    for index in range(6):
        cloud = household[index * 20]
        assert cloud.rgb is not None
        np.savez(root / f"object_{index}.npz", coord=cloud.xyz.numpy(), color=(cloud.rgb * 255).byte().numpy())
    return root


def embeddings(encoder: str, count: int) -> tuple[AlignedShapeEncoder, Tensor]:
    """The first objects of the embedded test split, prepared by hand."""
    model, normalize = load_encoder(encoder, expect=AlignedShapeEncoder), Normalize()
    household, rows = Household("test", num_points=POINTS), []
    for index in range(count):
        cloud = household[index]
        cloud = cloud.select(torch.randperm(POINTS, generator=torch.Generator().manual_seed(0)))
        cloud = normalize(cloud, torch.Generator())
        assert cloud.rgb is not None
        with torch.no_grad():
            rows.append(model.encode(cloud.xyz[None], rgb=cloud.rgb[None])[0])
    return model, torch.stack(rows)


# ---- zeroshot ----------------------------------------------------------------------------------------------------


def test_zero_shot_scores_are_the_nearest_texts(
    encoder: str, capsys: pytest.CaptureFixture[str], towers: list[str], tmp_path: Path
) -> None:
    assert main(["zeroshot", "--encoder", encoder, "--templates", "none", "--json", "--results", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert towers == ["fake:words"]
    household = Household("test", num_points=POINTS)
    assert (result["num_test"], result["num_classes"], result["feature_dim"]) == (124, len(household.classes), 6)
    model, embedding = embeddings(encoder, 124)
    unit = torch.nn.functional.normalize
    words = unit(torch.stack([vector_of(name) for name in household.classes]), dim=1)
    cosine = unit(model.in_text_space(embedding), dim=1) @ words.T
    for k in (1, 3, 5):
        hits = (cosine.topk(k).indices == household.labels[:, None]).any(1).float().mean().item()
        assert result["top"][str(k)] == pytest.approx(hits, abs=1e-6)
    rows = list(tmp_path.glob("*.row.json"))
    assert json.loads(rows[0].read_text())["metrics"]["top@1"] == result["top"]["1"]


def vector_of(text: str) -> Tensor:
    return torch.stack([vector(word, 6) for word in text.lower().replace("_", " ").split()]).sum(0)


def test_classes_and_prompts_from_a_file(encoder: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = [*reversed(Household("test").classes), "dragon"]
    lines = [*names, "chair\ta thing to sit on", "chair\tseat"]
    (tmp_path / "names.txt").write_text("\n".join(lines))
    command = ["zeroshot", "--encoder", encoder, "--templates", "none", "--num_points", "64"]
    assert main([*command, "--classes", str(tmp_path / "names.txt"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["num_classes"] == len(names)
    assert main([*command, "--classes", "chair,dragon"]) == 1
    assert "are not among the 2 given" in capsys.readouterr().err


def test_unlabelled_files_get_their_five_nearest_names(
    encoder: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(files / "object_0.npz")
    command = ["zeroshot", "--encoder", encoder, "--data", path]
    assert main([*command, "--classes", "chair,table,lamp,bed,sofa,a red car"]) == 0
    told = capsys.readouterr().out.strip()
    assert told.startswith("object_0: ")
    assert len(told.split(", ")) == 5
    assert main(command) == 1
    assert "has no class names: give some" in capsys.readouterr().err


@pytest.mark.parametrize("labelled", [True, False])
def test_zero_shot_leaves_out_files_that_cannot_be_used(
    encoder: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], labelled: bool
) -> None:
    good = tmp_path / "good"
    for name, index in (("chair", 0), ("table", 1)):
        folder = good / "test" / name if labelled else good
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(files / f"object_{index}.npz", folder)
    mixed = tmp_path / "mixed" / "good"
    shutil.copytree(good, mixed)
    (next(mixed.rglob("object_0.npz")).parent / "a.xyz").write_text("")
    options = ["--classes", "chair,table,lamp,bed,sofa", "--templates", "none", "--json"]
    command = ["zeroshot", "--encoder", encoder, *options, "--data"]
    assert main([*command, str(good)]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert main([*command, str(mixed)]) == 1
    assert "a.xyz: is empty; --on_error report leaves such files out" in capsys.readouterr().err
    assert main([*command, str(mixed), "--on_error", "report"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [Path(file["path"]).name for file in found.pop("left_out")] == ["a.xyz"]
    assert found == (expected if labelled else {"shapes": expected})


def test_zero_shot_without_alignment_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encoder: str
) -> None:
    save_encoder(PointViT(16, 1, 2, num_groups=8, group_size=8), tmp_path)
    assert main(["zeroshot", "--encoder", str(tmp_path)]) == 1
    assert "was not aligned with texts and pictures" in capsys.readouterr().err
    assert main(["zeroshot", "--encoder", encoder, "--text_tower", "fake:narrow", "--num_points", "64"]) == 1
    assert "has features of width 5, the encoder was aligned with 6" in capsys.readouterr().err
    save_encoder(OpenShapePointBERT(6, 64, 1, 1, 64, 16, 8, 0.5, 8), tmp_path / "bare")
    bare = ["zeroshot", "--encoder", str(tmp_path / "bare"), "--num_points", "64"]
    assert main(bare) == 1
    assert (
        "does not say what it was aligned with; if it was with such a tower at all, name it" in capsys.readouterr().err
    )
    assert main([*bare, "--text_tower", "fake:words", "--templates", "photo"]) == 0


# ---- index and search --------------------------------------------------------------------------------------------


@pytest.fixture
def index(encoder: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    folder = str(tmp_path / "index")
    assert main(["index", "build", "--encoder", encoder, "--data", str(files), "--output", folder]) == 0
    assert "6 shapes, 6 of them new, 16 dimensions; a million such shapes take about 0.3 GB" in capsys.readouterr().out
    return folder


def found(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main(["search", *arguments, "--json"]) == 0
    result: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return result


def test_shapes_find_themselves_texts_and_pictures_the_nearest(
    index: str, encoder: str, files: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, towers: list[str]
) -> None:
    own = str(files / "object_3.npz")
    hits = found(capsys, own, "--index", index)
    assert hits[0]["id"] == own
    assert hits[0]["score"] == pytest.approx(1.0, abs=2e-3)  # kept in half precision
    assert len(hits) == 6
    assert hits == sorted(hits, key=lambda hit: -hit["score"])
    assert towers == []

    stored = ShapeIndex(index)
    vectors = np.stack([stored._index.get(row) for row in range(6)]).astype(np.float32)
    model = load_encoder(encoder, expect=AlignedShapeEncoder)
    text = torch.nn.functional.normalize(vector_of("a wooden chair")[None], dim=1)
    expected = np.sqrt(2) * vectors[:, :6] @ text[0].numpy()
    hits = found(capsys, "a wooden chair", "--index", index, "--top", "6")
    assert [hit["id"] for hit in hits] == [stored.ids[row] for row in np.argsort(-expected)]
    assert hits[0]["score"] == pytest.approx(float(expected.max()), abs=5e-3)

    Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / "red.png")
    picture = model.joint_image(torch.tensor([[200.0, 10, 10, *[1.0] * 7]]))[0].detach().numpy()
    hits = found(capsys, str(tmp_path / "red.png"), "--index", index, "--top", "1", "--exact")
    assert hits[0]["id"] == stored.ids[int((vectors @ picture).argmax())]

    both = found(capsys, own, str(files / "object_1.npz"), "--index", index)
    least = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) @ vectors[[3, 1]].T).min(1)
    assert {hit["id"]: hit["score"] for hit in both} == pytest.approx(
        dict(zip(stored.ids, least, strict=True)), abs=2e-3
    )
    assert both == sorted(both, key=lambda hit: -hit["score"])


def test_files_with_invalid_points_are_used_without_them(
    encoder: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Depth cameras write a point for every pixel, also where they saw nothing."""
    with np.load(files / "object_3.npz") as stored:
        coord, color = stored["coord"], stored["color"]
    holes = tmp_path / "holes"
    holes.mkdir()
    nothing = np.full((50, 3), np.nan, np.float32)
    np.savez(holes / "a.npz", coord=np.concatenate([nothing, coord]), color=np.concatenate([color[:50], color]))
    whole, scan, out = str(files / "object_3.npz"), str(holes / "a.npz"), str(tmp_path / "index")
    build = ["index", "build", "--encoder", encoder, "--data", str(holes), "--output", out]
    shown = ["search", scan, "--index", out, "--picture", str(tmp_path / "sheet.png")]
    zeroshot = ["zeroshot", "--encoder", encoder, "--data", scan, "--classes", "chair,table"]
    embed = ["embed", "--encoder", encoder, "--data", scan, "--output", str(tmp_path / "features.npz")]
    render = ["render", scan, "--output", str(tmp_path / "views"), "--size", "16"]
    for command in (build, shown, zeroshot, embed, render):
        assert main(command) == 1
        assert "50 of 250 points are not finite" in capsys.readouterr().err
        assert main([*command, "--drop_invalid"]) == 0
        capsys.readouterr()
    assert main(["search", whole, "--index", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["score"] == pytest.approx(1.0, abs=2e-3)


def test_queries_are_compared_where_it_is_said(
    index: str,
    files: Path,
    device: torch.device,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / "red.png")
    queries = [str(files / "object_3.npz"), "a wooden chair", str(tmp_path / "red.png"), "--each", "--index", index]
    expected = found(capsys, *queries)
    moved: list[object] = []
    to = AlignedShapeEncoder.to
    monkeypatch.setattr(AlignedShapeEncoder, "to", lambda self, *where: (moved.extend(where), to(self, *where))[1])
    place = torch.device(device.type, 0)  # not the default, on a CPU neither
    hits = found(capsys, *queries, "--device", str(place))
    assert moved == [place]
    for here, cpu in zip(hits, expected, strict=True):
        assert [hit["score"] for hit in here["hits"]] == pytest.approx([hit["score"] for hit in cpu["hits"]], abs=2e-3)


def test_a_text_beside_a_shape_counts_as_a_cosine(index: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hits = found(capsys, "a wooden chair", str(files / "object_3.npz"), "--index", index, "--exact")
    vectors = stored_vectors(index)
    in_text = vectors[:, :6] / np.linalg.norm(vectors[:, :6], axis=1, keepdims=True)
    text = torch.nn.functional.normalize(vector_of("a wooden chair"), dim=0).numpy()
    expected = np.minimum(in_text @ text, vectors @ vectors[3])
    assert {hit["id"]: hit["score"] for hit in hits} == pytest.approx(
        dict(zip(ShapeIndex(index).ids, expected, strict=True)), abs=5e-3
    )


def test_what_cannot_be_searched_for_is_refused_before_a_tower_is_loaded(
    index: str, encoder: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], towers: list[str]
) -> None:
    (tmp_path / "bad.txt").write_text("a photo of a {}\na photo\n")
    shape = str(files / "object_0.npz")
    for arguments, told in (
        ([" "], "query: an empty text finds nothing"),
        (["a chair", ""], "query: an empty text finds nothing"),
        (["a chair", "--image_tower", "x:y"], "image_tower: 'x:y' is for a picture, and no query is one"),
        ([shape, "--text_tower", "x:y"], "text_tower: 'x:y' is for a text, and no query is one"),
        ([shape, "--templates", "ulip"], "templates: 'ulip' is for a text, and no query is one"),
        (["a chair", "--up", "y"], "up: 'y' is for a shape, and no query is one"),
        (["a chair", "--drop_invalid"], "drop_invalid: True is for a shape, and no query is one"),
        (["a chair", "--top", "0"], "top: must be at least 1, got 0"),
        (["a chair", "--templates", "nothing"], "templates: 'nothing' is none of ulip, photo, none, and no file"),
        (
            ["a chair", "--templates", str(tmp_path / "bad.txt")],
            "a template must have the place {} once, got 'a photo'",
        ),
    ):
        assert main(["search", *arguments, "--index", index]) == 1
        assert told in capsys.readouterr().err
    assert main(["zeroshot", "--encoder", encoder, "--templates", str(tmp_path / "bad.txt")]) == 1
    assert "a template must have the place {} once" in capsys.readouterr().err
    assert towers == []


def test_files_of_too_few_points_for_the_encoder_are_named_or_left_out(
    index: str, encoder: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes_of = [path for path in sorted(files.iterdir()) if path.stem in ("object_0", "object_1")]
    folder = tmp_path / "shapes"
    folder.mkdir()
    for path in shapes_of:
        shutil.copy(path, folder)
    few = folder / "few.npy"
    np.save(few, np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32))
    reason = "clouds have 5 points, fewer than num_groups=8"
    assert main(["search", str(few), "--index", index]) == 1
    assert f"{few}: {reason}" in capsys.readouterr().err
    names = ["object_0", "object_1"]
    commands: dict[str, list[str]] = {
        "index build": ["--output", str(tmp_path / "few")],
        "embed": ["--output", str(tmp_path / "features.npz")],
        "zeroshot": ["--classes", "chair,table"],
    }
    for verb, more in commands.items():
        command = [*verb.split(), "--encoder", encoder, "--data", str(folder), *more]
        assert main(command) == 1
        told = capsys.readouterr().err
        assert f"{few}: {reason}" in told
        assert "--on_error report leaves such files out and lists them" in told
        assert main([*command, "--on_error", "report", "--json"]) == 0
        (left_out,) = json.loads(capsys.readouterr().out)["left_out"]
        assert left_out["path"] == str(few)
        assert left_out["reason"].startswith(reason)
    assert sorted(Path(name).stem for name in ShapeIndex(tmp_path / "few").ids) == names
    with np.load(tmp_path / "features.npz") as archive:
        assert [Path(name).stem for name in archive["id"]] == names


def test_a_tower_of_another_width_is_not_fetched(
    index: str, capsys: pytest.CaptureFixture[str], towers: list[str]
) -> None:
    pytest.importorskip("open_clip")
    assert main(["search", "a chair", "--index", index, "--text_tower", "open_clip:ViT-B-32/openai"]) == 1
    told = capsys.readouterr().err
    assert "open_clip:ViT-B-32/openai has features of width 512, the encoder was aligned with 6" in told
    assert towers == []


def test_a_tower_that_is_not_the_encoders_own_is_told(
    encoder: str, index: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of equal width, it would give wrong numbers and nothing else."""
    shape = str(files / "object_0.npz")
    Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / "red.png")
    zeroshot = ["zeroshot", "--encoder", encoder, "--data", shape, "--classes", "chair,table", "--quiet"]
    search = ["search", "a chair", str(tmp_path / "red.png"), "--index", index, "--quiet"]
    view = ["view", shape, "--encoder", encoder, "--text", "chair", "leg", "--output", str(tmp_path / "a.png")]
    text = "text_tower: the encoder was trained with fake:words, and fake:others is not that by its name"
    image = "image_tower: the encoder was trained with fake:pictures, and fake:photos is not that by its name"
    for command, options, told in (
        (zeroshot, ["--text_tower", "fake:others"], [text]),
        (search, ["--text_tower", "fake:others", "--image_tower", "fake:photos"], [text, image]),
        (view, ["--text_tower", "fake:others"], [text]),
    ):
        assert main([*command, *options]) == 0
        said = capsys.readouterr().err
        assert [said.count(f"warning: {one}") for one in told] == [1] * len(told)
        overwrite = ["--overwrite"] if command is view else []
        assert main([*command, *overwrite, "--text_tower", "fake:words"]) == 0
        assert "warning" not in capsys.readouterr().err
    # One file in two places has one name.
    warn_of_other_tower("text_tower", "open_clip:ViT-B-32//here/a.bin", "open_clip:ViT-B-32//there/a.bin")
    assert capsys.readouterr().err == ""


def test_an_encoder_of_words_alone_has_no_other_side(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], towers: list[str]
) -> None:
    torch.manual_seed(0)
    words = AlignedShapeEncoder(OpenShapePointBERT(16, 64, 1, 1, 64, 16, 8, 0.5, 8), 6, 10, text_space="fake:words")
    encoder = str(save_encoder(words.eval(), tmp_path / "words"))
    index = str(tmp_path / "index")
    assert main(["index", "build", "--encoder", encoder, "--data", str(files), "--output", index]) == 0
    assert "6 shapes, 6 of them new, 6 dimensions" in capsys.readouterr().out
    text = embedded(encoder, files, tmp_path / "text.npz", "--space", "text")
    unit = text / np.linalg.norm(text, axis=1, keepdims=True)
    np.testing.assert_allclose(stored_vectors(index), unit, atol=1e-3)
    capsys.readouterr()
    hits = found(capsys, str(files / "object_2.npz"), "--index", index)
    assert {hit["id"]: hit["score"] for hit in hits} == pytest.approx(
        dict(zip(ShapeIndex(index).ids, unit @ unit[2], strict=True)), abs=2e-3
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    told = "the encoder was aligned with fake:words alone, its image head was not trained"
    assert main(["search", str(tmp_path / "black.png"), "--index", index, "--image_tower", "fake:pictures"]) == 1
    assert told in capsys.readouterr().err
    assert main(["embed", "--encoder", encoder, "--space", "image", "--output", str(tmp_path / "image.npz")]) == 1
    assert told in capsys.readouterr().err
    assert towers == []


def test_building_again_adds_what_is_new(
    index: str, encoder: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = tmp_path / "more"
    more.mkdir()
    for path in files.glob("*.npz"):
        (more / path.name).write_bytes(path.read_bytes())
    build = ["index", "build", "--encoder", encoder, "--output", index]
    assert main([*build, "--data", str(files)]) == 0
    assert "6 shapes, 0 of them new" in capsys.readouterr().out
    assert main([*build, "--data", str(more / "object_2.npz")]) == 0
    assert "7 shapes, 1 of them new" in capsys.readouterr().out
    assert found(capsys, "chair", "--index", index, "--top", "7")[6]["id"]
    assert main([*build, "--data", "household", "--num_points", "64"]) == 0
    assert f"{7 + 124} shapes, 124 of them new" in capsys.readouterr().out
    assert main(["search", "lamp", "--index", index, "--top", "2"]) == 0
    assert capsys.readouterr().out.count("\n") == 2


def test_building_again_reads_tables_anew_whose_columns_have_other_names(
    encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = tmp_path / "shapes"
    shapes.mkdir()
    np.savetxt(shapes / "a.xyz", np.random.default_rng(0).random((80, 4)))
    build = ["index", "build", "--encoder", encoder, "--data", str(shapes), "--output", str(tmp_path / "index")]
    (shapes / ".columns").write_text("x y z intensity")
    for told in ("1 of them new, 16 dimensions", "0 of them new, 16 dimensions", "0 of them new, 1 renewed"):
        if "renewed" in told:
            (shapes / ".columns").write_text("intensity x y z ")
        assert main(build) == 0
        assert told in capsys.readouterr().out


def test_an_interrupted_build_goes_on(
    encoder: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode, sizes, stop_at = AlignedShapeEncoder.encode, [], 2

    @functools.wraps(encode)
    def interrupted(self: AlignedShapeEncoder, xyz: Tensor, *args: Any, **options: Any) -> Tensor:
        if len(sizes) == stop_at:
            raise KeyboardInterrupt
        sizes.append(len(xyz))
        return encode(self, xyz, *args, **options)

    def build(name: str) -> int:
        options = ["--encoder", encoder, "--data", str(files), "--batch_size", "2", "--quiet"]
        return main(["index", "build", *options, "--output", str(tmp_path / name)])

    assert build("alone") == 0
    monkeypatch.setattr(AlignedShapeEncoder, "encode", interrupted)
    assert build("stopped") == 130
    assert f"{tmp_path / 'stopped'} keeps 4 shapes: the same command goes on" in capsys.readouterr().err
    stop_at = -1
    assert build("stopped") == 0
    assert sizes == [2, 2, 2]
    np.testing.assert_array_equal(stored_vectors(tmp_path / "stopped"), stored_vectors(tmp_path / "alone"))
    sizes.clear()
    stop_at = 0
    assert build("never") == 130
    assert capsys.readouterr().err.endswith("\ninterrupted\n")


def test_a_file_that_was_replaced_is_embedded_again(
    index: str, encoder: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ["index", "build", "--encoder", encoder, "--output", index]
    first, second = files / "object_0.npz", files / "object_1.npz"
    content = first.read_bytes()
    try:
        first.write_bytes(second.read_bytes())
        assert main([*build, "--data", str(files)]) == 0
        assert "6 shapes, 0 of them new, 1 renewed, 16 dimensions" in capsys.readouterr().out
        vectors = stored_vectors(index)
        np.testing.assert_array_equal(vectors[0], vectors[1])
        assert main([*build, "--data", str(files)]) == 0
        assert "6 shapes, 0 of them new, 16" in capsys.readouterr().out
        assert main([*build, "--data", str(files), "--up", "y"]) == 0
        assert "6 shapes, 0 of them new, 6 renewed" in capsys.readouterr().out
    finally:
        first.write_bytes(content)


def test_shapes_of_a_set_are_renewed_where_their_points_changed(
    encoder: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = [
        "index",
        "build",
        "--encoder",
        encoder,
        "--data",
        str(tmp_path / "set"),
        "--output",
        str(tmp_path / "index"),
    ]
    shutil.copytree(shards, tmp_path / "set")
    for expected in ("8 shapes, 8 of them new", "8 shapes, 0 of them new, 16 dim"):
        assert main(build) == 0
        assert expected in capsys.readouterr().out
    clouds = list(map(AlignedShards(shards, "test").load, range(8)))
    clouds[3] = clouds[3].replace(xyz=clouds[3].xyz * torch.tensor([1.0, 2.0, 3.0]))
    write_shard(tmp_path / "set" / "test-000000.tar", clouds)
    write_index(tmp_path / "set" / "test-index.npz", [tmp_path / "set" / "test-000000.tar"])
    assert main(build) == 0
    assert "8 shapes, 0 of them new, 1 renewed" in capsys.readouterr().out


def test_paths_mean_the_same_in_every_working_folder(
    encoder: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(encoder, tmp_path / "home" / "mine")
    shutil.copytree(files, tmp_path / "home" / "files")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    index = str(tmp_path / "index")
    build = ["index", "build", "--encoder", "mine", "--output", index]
    assert main([*build, "--data", "files"]) == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    build[3] = str(tmp_path / "home" / "mine")
    for same in ("../home/files", str(tmp_path / "home" / "files"), "../home/files/object_2.npz"):
        capsys.readouterr()
        assert main([*build, "--data", same]) == 0
        assert "6 shapes, 0 of them new, 16" in capsys.readouterr().out
    sheet = str(tmp_path / "sheet.png")
    assert found(capsys, "a chair", "--index", index, "--top", "2", "--picture", sheet)
    (tmp_path / "home" / "mine").rename(tmp_path / "moved")
    assert main(["search", "a chair", "--index", index]) == 1
    told = capsys.readouterr().err
    assert f"was built with {tmp_path / 'home' / 'mine'}, which cannot be opened any more" in told
    assert "say so with --encoder FOLDER" in told
    assert found(capsys, "a chair", "--index", index, "--encoder", str(tmp_path / "moved"))


def test_unreadable_files_cost_nothing_else(
    encoder: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(files, tmp_path / "files")
    bad = tmp_path / "files" / "object_4.npz"
    bad.write_bytes(bad.read_bytes()[:300])
    index = str(tmp_path / "index")
    build = ["index", "build", "--encoder", encoder, "--data", str(tmp_path / "files"), "--output", index]
    assert main([*build, "--batch_size", "3"]) == 1
    told = capsys.readouterr().err
    assert f"{bad}: cannot be read as NPZ" in told
    assert "the index keeps the 4 shape(s) embedded before it. --on_error report leaves such files out" in told
    assert len(ShapeIndex(index)) == 4
    (tmp_path / "files" / "list.xlsx").write_text("a stranger")
    assert main([*build, "--on_error", "report"]) == 0
    told = capsys.readouterr().out
    assert "5 shapes, 1 of them new" in told
    assert f"left out: {bad}: cannot be read as NPZ" in told
    assert f"left out: {tmp_path / 'files' / 'list.xlsx'}: has the ending '.xlsx'" in told
    assert main([*build, "--on_error", "report", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["shapes"], result["new"], result["renewed"]) == (5, 0, 0)
    assert [Path(file["path"]).name for file in result["left_out"]] == ["list.xlsx", "object_4.npz"]
    assert main([*build[:-1], str(tmp_path / "other"), "--data", str(bad), "--on_error", "report"]) == 1
    assert f"can be read, first {bad}: cannot be read as NPZ" in capsys.readouterr().err


def test_indices_of_other_encoders_and_bad_queries_are_refused(
    index: str, encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    other = AlignedShapeEncoder(OpenShapePointBERT(16, 64, 1, 1, 64, 16, 8, 0.5, 8), 6, 10, text_space="fake:words")
    save_encoder(other, tmp_path / "other")
    assert main(["index", "build", "--encoder", str(tmp_path / "other"), "--output", index]) == 1
    assert "its vectors cannot be compared with those of" in capsys.readouterr().err
    assert main(["search", "chair", "--index", index, "--encoder", str(tmp_path / "other")]) == 1
    assert "has other weights than the one" in capsys.readouterr().err
    assert main(["search", "chair", "--index", str(tmp_path / "none")]) == 1
    assert "holds no index of shapes: make one with pc3d index build" in capsys.readouterr().err
    for missing in ("missing/chair.glb", "chair.GLB", "my chair.ply", "photo of a chair.jpg"):
        assert main(["search", missing, "--index", index]) == 1
        assert f"there is no file {missing}" in capsys.readouterr().err
    assert main(["index", "bild"]) == 2
    assert "did you mean 'build'?" in capsys.readouterr().err
    assert main(["index"]) == 2
    assert main(["index", "build", "--help"]) == 0


def test_embed_writes_vectors_of_each_space(encoder: str, tmp_path: Path) -> None:
    for space, width in (("encoder", 16), ("text", 6), ("image", 10), ("joint", 16)):
        out = tmp_path / f"{space}.npz"
        command = ["embed", "--encoder", encoder, "--output", str(out), "--num_points", "64", "--space", space]
        assert main(command) == 0
        with np.load(out) as file:
            assert file["features"].shape == (124, width)
            if space == "joint":
                np.testing.assert_allclose(np.linalg.norm(file["features"], axis=1), 1.0, rtol=1e-5)


def stored_vectors(folder: str) -> Any:
    stored = ShapeIndex(folder)
    return np.stack([stored._index.get(row) for row in range(len(stored))]).astype(np.float32)


def embedded(encoder: str, data: Path | str, out: Path, *options: str) -> Any:
    assert main(["embed", "--encoder", encoder, "--data", str(data), "--output", str(out), *options]) == 0
    with np.load(out) as file:
        return file["features"]


@pytest.mark.parametrize(("suffix", "options"), [(".glb", []), (".ply", ["--up", "y"]), (".glb", ["--up", "z"])])
def test_embedded_shapes_are_those_of_the_index(encoder: str, tmp_path: Path, suffix: str, options: list[str]) -> None:
    """Meshes whose y is up, prepared by hand: turned, in random order, centred at their mean."""
    trimesh = pytest.importorskip("trimesh")
    folder = tmp_path / "meshes"
    folder.mkdir()
    for number, extents in enumerate([(1, 2, 4), (3, 1, 1)]):
        trimesh.creation.box(extents).export(folder / f"{number}{suffix}")
    index = str(tmp_path / "index")
    assert main(["index", "build", "--encoder", encoder, "--data", str(folder), "--output", index, *options]) == 0
    joint = embedded(encoder, folder, tmp_path / "joint.npz", "--space", "joint", *options)
    np.testing.assert_allclose(joint, stored_vectors(index), atol=1e-3)  # kept in half precision
    model, rows = load_encoder(encoder, expect=AlignedShapeEncoder), []
    for number in range(2):
        cloud = FolderDataset(folder).load(number)
        x, y, z = cloud.xyz.T
        cloud = cloud.replace(xyz=cloud.xyz if options == ["--up", "z"] else torch.stack([x, -z, y], dim=1))
        cloud = cloud.select(torch.randperm(len(cloud), generator=torch.Generator().manual_seed(0)))
        cloud = Normalize()(cloud, torch.Generator())
        rgb = None if cloud.rgb is None else cloud.rgb[None]
        with torch.no_grad():
            rows.append(model.joint(model.encode(cloud.xyz[None], rgb=rgb))[0].numpy())
    np.testing.assert_allclose(joint, np.stack(rows), atol=1e-5)


def test_embedded_household_is_that_of_the_index_and_what_is_judged(encoder: str, tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    assert main(["index", "build", "--encoder", encoder, "--output", index]) == 0
    joint = embedded(encoder, "household", tmp_path / "joint.npz", "--space", "joint")
    np.testing.assert_allclose(joint, stored_vectors(index), atol=1e-3)
    frozen = features_of(encoder, "household", None, "default", None, 32, untrained=False, seed=0)
    own = embedded(encoder, "household", tmp_path / "own.npz")
    np.testing.assert_allclose(frozen.test.values, own, atol=1e-5)
    model, by_hand = embeddings(encoder, 5)
    np.testing.assert_allclose(own[:5], by_hand, atol=1e-5)
    np.testing.assert_allclose(joint[:5], model.joint(by_hand).detach(), atol=1e-5)
    assert (frozen.test.num_points, frozen.test.sampling) == (POINTS, "random")  # of the 10,000 that were asked for


def test_only_aligned_encoders_have_an_up_axis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_encoder(PointViT(16, 1, 2, num_groups=8, group_size=8), tmp_path)
    for verb in ("probe", "fewshot"):
        assert main([verb, "--encoder", str(tmp_path), "--up", "y"]) == 1
        assert "up: 'y' is for encoders aligned with texts and pictures" in capsys.readouterr().err


def test_points_are_by_default_those_of_the_encoder(tmp_path: Path) -> None:
    bare = OpenShapePointBERT(6, 64, 1, 1, 64, 16, 8, 0.5, 8, num_points=300)
    assert points_for(bare, "default") == points_for(AlignedShapeEncoder(bare, 6, 10), "default") == 300
    assert points_for(PointViT(16, 1, 2, num_groups=8, group_size=8), "default") == 1024
    assert points_for(bare, 7) == 7
    assert points_for(bare, None) is None


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training and a test split of shards as data_tools/convert_openshape.py leaves them, of two classes."""
    root = tmp_path_factory.mktemp("shards")
    nothing = Targets(torch.zeros(0, 0), torch.zeros(0, 0), (), (), ())
    for split in ("train", "test"):
        household, clouds = Household(split, num_points=100), []
        for row in range(8):
            cloud = household.load(row)
            clouds.append(cloud.replace(meta={"id": f"{split}{row}", "dataset": "ours", "targets": nothing}))
        write_shard(root / f"{split}-000000.tar", clouds)
        (root / f"{split}-000000.skipped").write_text("")
        labels = {f"{split}{row}": row % 2 for row in range(8)}
        write_index(root / f"{split}-index.npz", [root / f"{split}-000000.tar"], labels, ["a", "b"])
    return root


def test_every_verb_reads_shards_of_aligned_shapes(
    encoder: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, data = str(tmp_path / "index"), ["--data", str(shards)]
    assert main(["index", "build", "--encoder", encoder, "--output", index, *data, "--split", "train"]) == 0
    joint = embedded(encoder, shards, tmp_path / "joint.npz", "--space", "joint", "--split", "train")
    np.testing.assert_allclose(joint, stored_vectors(index), atol=1e-3)
    capsys.readouterr()
    assert main(["probe", "--encoder", encoder, *data, "--classifier", "knn", "--k", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["num_train"], result["num_test"], result["num_points"]) == (8, 8, 100)
    few = ["--way", "2", "--shot", "1", "--num_queries", "2", "--num_episodes", "2"]
    assert main(["fewshot", "--encoder", encoder, *data, *few]) == 0
    assert (
        main(["probe", "--encoder", "descriptor", *data, "--num_points", "64", "--classifier", "knn", "--k", "1"]) == 0
    )
    assert main(["embed", "--encoder", encoder, *data, "--split", "val", "--output", str(tmp_path / "val.npz")]) == 1
    assert "val-index.npz" in capsys.readouterr().err


def test_aligned_encoders_are_probed_as_any_other(encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--encoder", encoder, "--classifier", "knn", "--num_points", "64", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["feature_dim"], result["pooling"]) == (16, "none (the embedding)")
    assert 0 < result["scores"]["overall_accuracy"] < 1


def test_texts_may_be_longer_than_a_path(index: str, encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = "a wooden chair with four legs and a soft seat " * 8
    assert found(capsys, text, "--index", index, "--top", "1")
    names = [f"class number {number}" for number in range(40)]
    assert read_classes(",".join(names)) == {name: [name] for name in names}
    assert main(["zeroshot", "--encoder", encoder, "--templates", text]) == 1
    assert "is none of ulip, photo, none, and no file" in capsys.readouterr().err


def test_files_of_names_are_text_in_utf_8(tmp_path: Path) -> None:
    """With a byte order mark or without."""
    marked, other = tmp_path / "marked.txt", tmp_path / "other.txt"
    marked.write_text("stühle\nlamp\ta lamp\n", encoding="utf-8-sig")
    assert read_classes(str(marked)) == {"stühle": ["stühle"], "lamp": ["a lamp"]}
    marked.write_text("{} here\n", encoding="utf-8-sig")
    assert templates_of(str(marked)) == ("{} here",)
    other.write_text("stühle {}\n", encoding="latin-1")
    for option, read in (("classes", read_classes), ("templates", templates_of)):
        with pytest.raises(ValueError, match=rf"{option}: .*other\.txt is no text in UTF-8"):
            read(str(other))


# ---- OpenShape's release ------------------------------------------------------------------------------------------


def test_the_release_is_judged_on_the_classes_of_its_list(
    encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not on the names of its folders, which are those of the four sources."""
    records = []
    for number, (source, category) in enumerate((("Objaverse", "zebra"), ("ABO", "Alarm clock"), ("ABO", "apple"))):
        place = tmp_path / source / "000-000" / f"{number}.npy"
        place.parent.mkdir(parents=True, exist_ok=True)
        xyz = np.random.default_rng(number).normal(size=(200, 3))
        content: dict[str, Any] = {"dataset": source, "xyz": xyz, "rgb": np.full((200, 3), 0.5)}
        content |= {"image_feat": np.ones((12, 1, 4)), "text": [], "text_feat": []}
        content |= {"blip_caption": "", "msft_caption": "", "retrieval_text": [], "retrieval_text_feat": []}
        np.save(place, np.array(content, dtype=object), allow_pickle=True)
        records.append({"uid": str(number), "category": category, "data_path": str(place.relative_to(tmp_path))})
    (tmp_path / "split").mkdir()
    (tmp_path / "split" / "lvis.json").write_text(json.dumps(records))
    dataset = shapes(str(tmp_path), "lvis", None, None).dataset
    assert dataset.classes == ("Alarm clock", "apple", "zebra")
    assert dataset.labels.tolist() == [2, 0, 1]
    stored = np.load(tmp_path / records[2]["data_path"], allow_pickle=True).item()["xyz"]
    np.testing.assert_allclose(dataset.load(2).xyz, stored[:, [0, 2, 1]] * [1, -1, 1], atol=1e-6)  # y up there
    options = ["--data", str(tmp_path), "--split", "lvis", "--json"]
    assert main(["zeroshot", "--encoder", encoder, *options]) == 0
    assert json.loads(capsys.readouterr().out)["num_classes"] == 3
    assert main(["zeroshot", "--encoder", encoder, "--data", str(tmp_path)]) == 1
    assert "test.json" in capsys.readouterr().err


def write_openshape_tests(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """The release's folders of ModelNet40 and ScanObjectNN with three objects each; gives their coordinates, y up."""
    modelnet, scans = (
        np.random.default_rng(0).normal(size=(3, 100, 3)),
        np.random.default_rng(1).normal(size=(3, 64, 3)),
    )
    for name in ("modelnet40", "scanobjectnn"):
        (root / name).mkdir()
    shapes = np.empty(3, object)
    for row, xyz in enumerate(modelnet):
        shapes[row] = {"xyz": xyz, "rgb": np.full((100, 3), 100)}
    np.save(root / "modelnet40" / "test_pc.npy", shapes, allow_pickle=True)
    names = [("sofa_0700", "sofa"), ("flower_pot_0150", "flower_pot"), ("sofa_0701", "sofa")]
    records = [{"name": name, "category": category} for name, category in names]
    (root / "modelnet40" / "test_split.json").write_text(json.dumps(records))
    content = np.array({"xyz": scans.astype(np.float32), "label": np.array([0, 4, 14])}, dtype=object)
    np.save(root / "scanobjectnn" / "xyz_label.npy", content, allow_pickle=True)
    return modelnet, scans


def test_the_test_sets_of_the_release_are_read_as_they_are(
    encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, stored in zip(("modelnet40", "scanobjectnn"), write_openshape_tests(tmp_path), strict=True):
        dataset = OpenShapeTests(tmp_path / name)
        for row in range(3):
            x, y, z = stored[row].T
            np.testing.assert_allclose(dataset.load(row).xyz, np.stack([x, -z, y], 1), atol=1e-6)
        source = shapes(str(tmp_path / name), "test", None, None)
        assert (source.sampling, source.normalize) == ("random", "centroid")
        assert torch.equal(source.dataset.load(0).xyz, dataset.load(0).xyz)
        command = ["zeroshot", "--encoder", encoder, "--templates", "none", "--json", "--data", str(tmp_path / name)]
        assert main(command) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["num_classes"], found["num_test"]) == ({"modelnet40": 2, "scanobjectnn": 15}[name], 3)
    modelnet, scans = OpenShapeTests(tmp_path / "modelnet40"), OpenShapeTests(tmp_path / "scanobjectnn")
    assert modelnet.classes == ("flower pot", "sofa")
    assert modelnet.labels.tolist() == [1, 0, 1]
    assert modelnet.load(1).meta["id"] == "flower_pot_0150"
    np.testing.assert_allclose(modelnet.load(0).rgb, 100 / 255)
    assert [scans.classes[label] for label in scans.labels.tolist()] == ["bag", "chair", "toilet"]
    assert scans.load(0).rgb is None


def test_points_are_drawn_with_replacement_as_the_released_code_draws_scans(
    encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, scans = write_openshape_tests(tmp_path)
    seen: list[torch.Tensor] = []
    encode = AlignedShapeEncoder.encode

    def spy(self: AlignedShapeEncoder, xyz: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        seen.append(xyz)
        return encode(self, xyz, *rest, **named)

    monkeypatch.setattr(AlignedShapeEncoder, "encode", spy)
    command = ["zeroshot", "--encoder", encoder, "--templates", "none", "--data", str(tmp_path / "scanobjectnn")]
    assert main([*command, "--num_points", "500", "--replacement"]) == 0
    assert "500 points (drawn with replacement) of each cloud" in capsys.readouterr().out
    assert main([*command, "--num_points", "500"]) == 0
    assert "at most 64 points (random) of each cloud" in capsys.readouterr().out
    drawn, whole = seen
    assert (drawn.shape, whole.shape) == ((3, 500, 3), (3, 64, 3))
    for cloud, stored in zip(drawn, scans.astype(np.float32), strict=True):
        x, y, z = stored.T
        points = np.stack([x, -z, y], 1)
        distinct, visits = np.unique(cloud.numpy(), axis=0, return_counts=True)
        assert len(distinct) == 64  # 500 draws leave one of 64 points out with probability 0.02
        assert 1 < visits.std() < 6  # a multinomial has 2.8
        # Up to a shift and a scale, they are the stored points.
        points = points[np.lexsort(points.T[::-1])]
        scale = np.ptp(points, axis=0) / np.ptp(distinct, axis=0)
        np.testing.assert_allclose(scale, scale[0], rtol=1e-4)
        np.testing.assert_allclose(distinct - distinct[0], (points - points[0]) / scale[0], atol=1e-4)
    assert main([*command, "--num_points", "null", "--replacement"]) == 1
    assert "replacement: say how many points are drawn" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["dictionary", "array"])
def test_the_class_features_of_the_release_take_the_place_of_a_text_tower(
    encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], towers: list[str], kind: str
) -> None:
    """The released files: a dictionary in the order of its classes, or rows in alphabetical order."""
    modelnet, _ = write_openshape_tests(tmp_path)
    rows = {"sofa": vector("one", 6), "lamp": vector("two", 6), "flower pot": vector("three", 6)}
    if kind == "dictionary":
        content: Any = {name: {"open_clip_text_feat": row[None].numpy()} for name, row in rows.items()}
        np.save(tmp_path / "features.npy", np.array(content, dtype=object), allow_pickle=True)
    else:
        rows.pop("lamp")
        np.save(tmp_path / "features.npy", np.stack([rows["flower pot"], rows["sofa"]]))
    command = ["zeroshot", "--encoder", encoder, "--data", str(tmp_path / "modelnet40"), "--json", "--class_features"]
    assert main([*command, str(tmp_path / "features.npy")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert towers == []
    assert found["num_classes"] == len(rows)
    model, hits = load_encoder(encoder, expect=AlignedShapeEncoder), 0
    for row, name in enumerate(["sofa", "flower pot", "sofa"]):
        order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
        x, y, z = torch.from_numpy(modelnet[row]).float()[order].unbind(1)
        cloud = torch.stack([x, -z, y], 1)
        cloud = (cloud - cloud.mean(0)) / (cloud - cloud.mean(0)).norm(dim=1).max()
        with torch.no_grad():
            embedding = model.in_text_space(model.encode(cloud[None], rgb=torch.full((1, 100, 3), 100 / 255)))
        nearest = torch.cosine_similarity(embedding, torch.stack(list(rows.values()))).argmax()
        hits += list(rows)[int(nearest)] == name
    assert found["top"]["1"] == pytest.approx(hits / 3)


def test_class_features_that_do_not_go_with_the_data(
    encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_openshape_tests(tmp_path)
    file = tmp_path / "features.npy"
    command = ["zeroshot", "--encoder", encoder, "--data", str(tmp_path / "modelnet40"), "--class_features", str(file)]
    other = {"sofa": {"open_clip_text_feat": np.ones((1, 6))}}
    for content, message in (
        (other, "has no features of 1 of the data's classes (flower pot)"),
        ({"sofa": 1}, "is not a file of class features of OpenShape"),
        (np.ones((3, 6)), "has 3 rows, the data have 2 classes"),
        (np.ones((2, 5)), "has features of width 5, the encoder was aligned with 6"),
        (np.full((2, 6), np.nan), "must hold finite features"),
        (np.ones(2), "must hold finite features, all of one width"),
    ):
        as_object = isinstance(content, dict)
        np.save(file, np.array(content, dtype=object) if as_object else content, allow_pickle=as_object)
        assert main(command) == 1
        assert message in capsys.readouterr().err
    for option, value in (("classes", "sofa,lamp"), ("text_tower", "offline:minilm"), ("templates", "photo")):
        assert main([*command, f"--{option}", value]) == 1
        assert "leave classes, templates and text_tower out" in capsys.readouterr().err


def test_damaged_test_sets_of_the_release_are_named(tmp_path: Path) -> None:
    write_openshape_tests(tmp_path)
    with pytest.raises(ValueError, match="no training split"):
        OpenShapeTests(tmp_path / "modelnet40", "train")
    with pytest.raises(MissingDataError, match=r"test_pc\.npy"):
        OpenShapeTests(tmp_path)
    (tmp_path / "modelnet40" / "test_split.json").write_text('[{"name": "a", "category": "sofa"}]')
    with pytest.raises(BadFileError, match=r"test_pc\.npy: holds 3 shapes, test_split\.json lists 1"):
        OpenShapeTests(tmp_path / "modelnet40")
    for content in ({"xyz": np.zeros((3, 64, 3))}, {"xyz": np.zeros((3, 64, 3)), "label": np.zeros(2)}, [1, 2]):
        np.save(tmp_path / "scanobjectnn" / "xyz_label.npy", np.array(content, dtype=object), allow_pickle=True)
        with pytest.raises(BadFileError, match=r"xyz_label\.npy: is not a test set of OpenShape"):
            OpenShapeTests(tmp_path / "scanobjectnn")


# ---- pictures as queries -----------------------------------------------------------------------------------------


def test_a_file_that_is_no_picture_is_named(index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.png").write_text("no picture")
    assert main(["search", str(tmp_path / "no.png"), "--index", index, "--image_tower", "fake:pictures"]) == 1
    assert f"{tmp_path / 'no.png'}: cannot be read as a picture" in capsys.readouterr().err


# ---- the picture of a search -------------------------------------------------------------------------------------


def test_a_search_is_drawn(index: str, files: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / "red.png")
    own, red, sheet = str(files / "object_3.npz"), str(tmp_path / "red.png"), tmp_path / "a" / "sheet.png"
    each = found(capsys, "a chair", red, own, "--index", index, "--each", "--top", "2", "--picture", str(sheet))
    assert [one["query"] for one in each] == ["a chair", red, own]
    assert [len(one["hits"]) for one in each] == [2, 2, 2]
    for one in each:
        assert one["hits"] == found(capsys, one["query"], "--index", index, "--top", "2")
    with Image.open(sheet) as picture:
        width, height = picture.size
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    # The red picture is in the first of three columns, in the second of three rows.
    rows, columns = np.nonzero((np.abs(pixels - [200, 10, 10]) < 8).all(-1))
    assert len(rows) > 500
    assert columns.max() < width / 3
    assert height / 3 - 30 < rows.min() < rows.max() < 2 * height / 3 + 30
    assert main(["search", "a chair", red, "--index", index, "--picture", str(tmp_path / "near_both.svg")]) == 0
    assert (tmp_path / "near_both.svg").stat().st_size > 1000
    capsys.readouterr()
    assert main(["search", "a chair", "--index", index, "--picture", str(tmp_path / "sheet.gif")]) == 1
    assert "picture: must end in one of .png, .jpg" in capsys.readouterr().err


def test_the_picture_of_a_search_replaces_none_unasked(
    index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.png"
    mine.write_text("mine")
    command = ["search", "a chair", "--index", index, "--picture", str(mine)]
    assert main(command) == 1
    assert (
        f"picture: {mine} exists and would be lost: choose another name, or add --overwrite" in capsys.readouterr().err
    )
    assert mine.read_text() == "mine"
    assert main([*command, "--overwrite"]) == 0
    with Image.open(mine) as picture:
        assert picture.format == "PNG"


def test_shapes_of_a_set_are_drawn_from_where_they_were(
    encoder: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "index")
    build = ["index", "build", "--encoder", encoder, "--output", folder, "--num_points", "64"]
    for data in (str(files), "household"):
        assert main([*build, "--data", data]) == 0
    capsys.readouterr()
    drawn: list[Any] = []
    monkeypatch.setattr("pc3d.cli._search_picture.draw", lambda cloud: drawn.append(cloud) or np.zeros((4, 4, 3), "u1"))
    hits = found(capsys, "lamp", "--index", folder, "--top", "130", "--picture", str(tmp_path / "all.png"))
    assert len(hits) == len(drawn) == 130
    household = Household("test")
    for hit, cloud in zip(hits, drawn, strict=True):
        if "path" not in hit["record"]:
            assert str(household[hit["record"]["row"]].meta["id"]) == hit["id"] == str(cloud.meta["id"])
        else:
            assert cloud.meta["path"] == hit["id"]
    stored = ShapeIndex(folder)
    stored.made_by["sources"][1]["split"] = "train"
    stored.save()
    assert main(["search", "lamp", "--index", folder, "--top", "130", "--picture", str(tmp_path / "changed.png")]) == 1
    assert "is not where it was in household: build the index anew" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["modelnet", "scanobjectnn"])
def test_shapes_that_share_a_file_are_drawn_each_as_itself(
    encoder: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    h5py = pytest.importorskip("h5py")
    household = Household("test", num_points=64)
    points = np.stack([household.load(20 * row).xyz.numpy() for row in range(4)])
    folder = tmp_path / "data"
    name = "ply_data_test0.h5" if kind == "modelnet" else "main_split/test_objectdataset.h5"
    (folder / name).parent.mkdir(parents=True)
    with h5py.File(folder / name, "w") as file:
        file["data"], file["label"] = points, np.arange(4)
    (folder / "shape_names.txt").write_text("\n".join(f"class {i}" for i in range(40)))
    index = str(tmp_path / "index")
    assert main(["index", "build", "--encoder", encoder, "--output", index, "--data", str(folder)]) == 0
    drawn: list[Any] = []
    monkeypatch.setattr("pc3d.cli._search_picture.draw", lambda cloud: drawn.append(cloud) or np.zeros((4, 4, 3), "u1"))
    capsys.readouterr()
    hits = found(capsys, "lamp", "--index", index, "--picture", str(tmp_path / "all.png"))
    assert len(hits) == len(drawn) == 4
    for hit, cloud in zip(hits, drawn, strict=True):
        x, y, z = points[int(hit["id"].rpartition("/")[2])].T
        np.testing.assert_array_equal(cloud.xyz.numpy(), np.stack([x, -z, y], axis=1))  # the sets have y up
    as_stored = shapes(str(folder), "test", None, "z").dataset.load(2)
    np.testing.assert_array_equal(as_stored.xyz.numpy(), points[2])
    with h5py.File(folder / name, "a") as file:
        del file["data"], file["label"]
        file["data"], file["label"] = points[:1], np.arange(1)
    assert main(["search", "lamp", "--index", index, "--picture", str(tmp_path / "changed.png")]) == 1
    assert f"is not where it was in {folder}: build the index anew" in capsys.readouterr().err


def test_text_files_of_modelnet_are_turned_as_a_set_and_alone(
    encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, index = tmp_path / "data", str(tmp_path / "index")
    (folder / "chair").mkdir(parents=True)
    (folder / "modelnet40_shape_names.txt").write_text("chair\n")
    for split in ("train", "test"):
        (folder / f"modelnet40_{split}.txt").write_text("chair_0001\n")
    table = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    table[:, 3:] /= np.linalg.norm(table[:, 3:], axis=1, keepdims=True)
    np.savetxt(folder / "chair" / "chair_0001.txt", table, delimiter=",", fmt="%.8g")
    drawn: list[Any] = []
    monkeypatch.setattr("pc3d.cli._search_picture.draw", lambda cloud: drawn.append(cloud) or np.zeros((4, 4, 3), "u1"))
    assert main(["index", "build", "--encoder", encoder, "--output", index, "--data", str(folder)]) == 0
    capsys.readouterr()
    found(capsys, "lamp", "--index", index, "--picture", str(tmp_path / "all.png"))
    x, y, z = table[:, :3].T
    np.testing.assert_allclose(drawn[0].xyz, np.stack([x, -z, y], axis=1), rtol=1e-6)
    joint = embedded(encoder, folder, tmp_path / "joint.npz", "--space", "joint")
    np.testing.assert_allclose(joint, stored_vectors(index), atol=1e-3)


def test_few_shot_of_an_aligned_encoder(encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "fewshot",
        "--encoder",
        encoder,
        "--num_points",
        "64",
        "--way",
        "5",
        "--shot",
        "1",
        "--num_episodes",
        "3",
        "--json",
    ]
    assert main(command) == 0
    assert len(json.loads(capsys.readouterr().out)["accuracies"]) == 3
