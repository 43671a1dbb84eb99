"""Texts of shapes: which say something, what a language model is asked, captions and retrieved texts."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from openshape_release import shape, write_release
from PIL import Image
from torch import Tensor

from pc3d.data import AlignedShards, BadFileError, ChooseTargets, Household, OpenShapeFiles, Selection
from pc3d.data.aligned import Targets
from pc3d.data.aligned_files import write_index, write_shard
from pc3d.data.chat import ChatEndpoint, EndpointCaptioner
from pc3d.data.enrichment import NearestTexts, enriched
from pc3d.data.text_quality import LanguageModelJudge, by_rules, filter_texts, text_picture_cosines, why_silent
from pc3d.image import precompute

Server = Callable[[Callable[[dict[str, Any]], Any]], str]


@pytest.fixture
def server() -> Iterator[tuple[Server, list[Any]]]:
    """Starts an endpoint whose answers a function decides; and what it was asked."""
    asked: list[Any] = []
    running: list[HTTPServer] = []

    def start(answer: Callable[[dict[str, Any]], Any]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                asked.append((self.path, self.headers.get("Authorization"), body))
                said = answer(body)
                self.send_response(said if isinstance(said, int) else 200)
                self.end_headers()
                text = "sorry" if isinstance(said, int) else json.dumps(said)
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        one = HTTPServer(("127.0.0.1", 0), Handler)
        running.append(one)
        threading.Thread(target=one.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{one.server_port}/v1/"

    yield start, asked
    for one in running:
        one.shutdown()
        one.server_close()


def said(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}}]}


# ---- rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("wooden chair", None),
        ("RockingChair_v2", None),
        ("椅子", None),
        ("стул", None),
        ("Low Poly Tree", None),
        ("  ", "empty"),
        ("2019-04-01 12:33:10", "no letters"),
        ("IMG_20190401", "generic words alone"),
        ("DB9", "letters and digits that are no words"),
        ("xkcdq", "letters and digits that are no words"),
        ("hd7f3a91", "letters and digits that are no words"),
        ("Untitled model", "generic words alone"),
        ("final_test_export_03", "generic words alone"),
        ("new scene (copy)", "generic words alone"),
    ],
)
def test_rules(text: str, reason: str | None) -> None:
    assert why_silent(text) == reason


def test_real_names_pass_the_rules() -> None:
    household = Household("train", num_points=1)
    names = [household[i].text or "" for i in range(len(household))]
    lost = [name for name, keep in zip(names, by_rules(names), strict=True) if not keep]
    assert len(lost) <= 0.01 * len(names), lost


def test_similarity_with_the_mean_picture() -> None:
    texts = torch.tensor([[2.0, 0, 0], [0, 0, 1], [1, 1, 0]])
    pictures = torch.tensor([[5.0, 0, 0], [0, 1, 0]])  # their mean points at (1, 1, 0)
    assert text_picture_cosines(texts, pictures).tolist() == pytest.approx([0.5**0.5, 0, 1])
    with pytest.raises(ValueError, match=r"in one space, got \(3, 3\) and \(2, 2\)"):
        text_picture_cosines(texts, pictures[:, :2])
    with pytest.raises(ValueError, match="without a picture there is nothing to compare"):
        text_picture_cosines(texts, pictures[:0])


# ---- a language model --------------------------------------------------------------------------------------------


def test_the_model_is_asked_in_numbered_lists(
    server: tuple[Server, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, asked = server
    monkeypatch.setenv("OPENAI_API_KEY", "a key")

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        lines = body["messages"][0]["content"].partition("2: N\n\n")[2].splitlines()
        return said("\n".join(f"{line.partition(':')[0]}: {'Y' if 'chair' in line else 'N'}" for line in lines))

    judge = LanguageModelJudge(ChatEndpoint(start(answer), "any-model"), batch_size=2)
    assert judge(["a chair", "IMG 7", "chair\nof oak", "x", "armchair"]) == [True, False, True, False, True]
    assert [path for path, _, _ in asked] == ["/v1/chat/completions"] * 3
    assert asked[0][1] == "Bearer a key"
    assert asked[1][2]["messages"][0]["content"].endswith("1: chair of oak\n2: x")
    assert asked[0][2]["model"] == "any-model"
    assert asked[0][2]["temperature"] == 0.0


def test_entries_left_out_are_asked_again(server: tuple[Server, list[Any]]) -> None:
    start, asked = server
    url = start(lambda body: said("**1**: Y" if len(asked) > 1 else "Sure!\n1. N"))
    assert LanguageModelJudge(ChatEndpoint(url, "m"))(["x", "a chair"]) == [False, True]
    url = start(lambda body: said("I would rather not."))
    with pytest.raises(ValueError, match="m gave no Y or N for 2 of 2 texts in 2 attempts, the first is 'x'"):
        LanguageModelJudge(ChatEndpoint(url, "m"), attempts=2)(["x", "a chair"])
    with pytest.raises(ValueError, match="batch_size and attempts must be at least 1, got 0 and 3"):
        LanguageModelJudge(ChatEndpoint(url, "m"), 0)


def test_endpoints_that_fail_are_named(server: tuple[Server, list[Any]]) -> None:
    start, _ = server
    with pytest.raises(OSError, match=r"/v1/chat/completions refused with 401: sorry"):
        ChatEndpoint(start(lambda body: 401), "m").ask("?")
    with pytest.raises(OSError, match=r"did not answer as the protocol says \(KeyError\('choices'\)\)"):
        ChatEndpoint(start(lambda body: {"error": "?"}), "m").ask("?")
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:9/chat/completions cannot be reached"):
        ChatEndpoint("http://127.0.0.1:9", "m").ask("?")
    with pytest.raises(ValueError, match="url must start with http"):
        ChatEndpoint("localhost:8000", "m")


def test_verdicts_are_kept_and_gone_on_with(tmp_path: Path) -> None:
    texts, path, seen = {"a": "a chair", "b": "IMG_1", "c": "a lamp"}, tmp_path / "filter.json", []

    def judge(some: Any) -> list[bool]:
        seen.extend(some)
        if "a lamp" in some and len(seen) < 4:
            raise OSError("the line is down")
        return by_rules(some)

    done: list[int] = []
    with pytest.raises(OSError, match="the line is down"):
        filter_texts(texts, judge, path, batch_size=2, progress=done.append)
    assert json.loads(path.read_text()) == {"a": {"flag": "Y", "name": "a chair"}, "b": {"flag": "N", "name": "IMG_1"}}
    assert filter_texts(texts, judge, path, batch_size=2, progress=done.append) == {"a": True, "b": False, "c": True}
    assert seen == ["a chair", "IMG_1", "a lamp", "a lamp"]
    assert done == [2, 3]
    with pytest.raises(BadFileError, match="has another text for 'a', and 0 more"):
        filter_texts({**texts, "a": "a stool"}, judge, path)
    path.write_text("{}x")
    with pytest.raises(BadFileError, match="is not a JSON object of id"):
        filter_texts(texts, judge, path)


# ---- enrichment --------------------------------------------------------------------------------------------------


def encode(texts: Any) -> Tensor:
    return torch.tensor([[float(len(text)), 1.0] for text in texts])


def targets(num_texts: int = 1) -> Targets:
    images = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    return Targets(torch.zeros(num_texts, 2), images, ("name",) * num_texts, ("raw",) * num_texts, ("rendering",) * 2)


def test_captions_and_retrieved_texts_are_added_with_their_features() -> None:
    bank = NearestTexts(
        torch.tensor([[0.0, 0, 1], [2, 0.1, 0], [0, 1, 0], [1, 0, 0]]), ["far", "near", "same", "same"], 2
    )
    found = enriched(
        targets(),
        encode,
        picture=np.zeros((4, 4, 3), np.uint8),
        captioners={"blip": lambda picture: " a caption ", "azure": lambda picture: ""},
        retrieve=bank,
        encode_retrieved=lambda texts: -encode(texts),
    )
    assert found.texts == ("name", "a caption", "same", "near")
    assert found.text_kinds == ("raw", "caption:blip", "retrieval", "retrieval")
    assert found.text_features.tolist() == [[0, 0], [9, 1], [-4, -1], [-4, -1]]
    assert enriched(targets(0), encode, retrieve=bank).text_features.tolist() == [[4, 1], [4, 1]]
    assert enriched(targets(), encode).texts == ("name",)
    with pytest.raises(ValueError, match="captioners need a picture"):
        enriched(targets(), encode, captioners={"blip": lambda picture: "x"})


def test_nearest_texts_do_not_depend_on_the_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    features, texts = torch.randn(50, 4, generator=generator), [f"text {i}" for i in range(50)]
    query = torch.randn(3, 4, generator=generator)
    cosine = torch.nn.functional.cosine_similarity(features[:, None], query[None], dim=2).amax(1)
    wanted = [f"text {i}" for i in cosine.argsort(descending=True)[:5].tolist()]
    assert NearestTexts(features, texts)(query) == NearestTexts(features, texts, rows_at_a_time=7)(query) == wanted
    assert NearestTexts(features, texts)(query[:0]) == []
    with pytest.raises(ValueError, match=r"features must be \(50, D\), a row per text, got \(49, 4\)"):
        NearestTexts(features[1:], texts)
    with pytest.raises(ValueError, match="count and rows_at_a_time must be at least 1"):
        NearestTexts(features, texts, 0)


def test_pictures_are_captioned_by_an_endpoint(server: tuple[Server, list[Any]]) -> None:
    start, asked = server
    caption = EndpointCaptioner(ChatEndpoint(start(lambda body: said(" a red\n chair ")), "m"))
    assert caption(np.full((2, 3, 3), 255, np.uint8)) == "a red chair"
    text, picture = asked[0][2]["messages"][0]["content"]
    assert text["type"] == "text"
    assert picture["image_url"]["url"].startswith("data:image/png;base64,iVBOR")


# ---- the tool ----------------------------------------------------------------------------------------------------


def tool(*arguments: str | Path) -> str:
    path = Path(__file__).parents[2] / "data_tools" / "filter_texts.py"
    spec = importlib.util.spec_from_file_location("filter_texts", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        module.main([str(argument) for argument in arguments])
    return printed.getvalue()


def test_the_tool_judges_names_by_their_pictures(tmp_path: Path) -> None:
    """Pictures start with (index, 99 or more), names with (index, 0, 1): the cosines differ by the index alone."""
    images = np.array([[[0.0, 0, 0, 1, 0, 0]], [[0, 0, 0, 3, 0, 0]]], np.float32)
    near = {"text_feat": [{"prompt_avg": images[0], "original": images[0]}], "thumbnail_feat": None}
    far = {"text_feat": [{"prompt_avg": np.eye(6)[:1] + images[0], "original": images[0]}], "thumbnail_feat": None}
    shapes = [
        shape(0, "Objaverse", image_feat=images, **near),
        shape(1, "Objaverse", image_feat=images, **far),
        shape(2, "Objaverse", image_feat=images[:0], **far),
    ]
    root, out = write_release(tmp_path, shapes), tmp_path / "filter.json"
    printed = tool(root, "split/train_all.json", out, "--similarity", "0.8")
    assert "3 names, 1 of them say nothing" in printed
    assert "cosines of 2 names: 1%: 0.710, 10%: 0.736, 30%: 0.795, 50%: 0.854, 90%: 0.971; 1 without" in printed
    assert {name: entry["flag"] for name, entry in json.loads(out.read_text()).items()} == {
        "uid.0": "Y",
        "uid.1": "N",  # cosine 1 / sqrt(2)
        "uid.2": "Y",
    }
    assert "no cosines in this run" in tool(root, "split/train_all.json", out, "--similarity", "0.8")
    with pytest.raises(SystemExit):
        tool(root, "split/train_all.json", out, "--similarity", "0.8", "--url", "http://x", "--model", "m")


def test_the_tool_judges_released_names(tmp_path: Path, server: tuple[Server, list[Any]]) -> None:
    shapes = [shape(0, "Objaverse"), shape(1, "Objaverse", text=["IMG_7"]), shape(2, "ABO")]
    shapes.append(shape(3, "Objaverse", text=[], text_feat=[]))
    root, out = write_release(tmp_path, shapes), tmp_path / "filter.json"
    assert "2 names, 1 of them say nothing" in tool(root, "split/train_all.json", out)
    found = OpenShapeFiles(root, text_filter=out)
    assert "raw" in found[0].meta["targets"].text_kinds
    assert "raw" not in found[1].meta["targets"].text_kinds

    start, asked = server
    url = start(lambda body: said("1: N\n2: Y\n3: Y"))
    model = ("--url", url, "--model", "m", "--all")
    assert "3 names, 1 of them say nothing" in tool(root, "split/train_all.json", tmp_path / "other.json", *model)
    assert len(asked) == 1
    with pytest.raises(SystemExit, match="cannot be reached"):
        tool(root, "split/train_all.json", tmp_path / "third.json", "--url", "http://127.0.0.1:9", "--model", "m")
    with pytest.raises(SystemExit):
        tool(root, "split/train_all.json", out, "--model", "m")


# ---- the tool that adds texts ------------------------------------------------------------------------------------


class Lengths:
    """A text tower: the length of a text, and 1."""

    name, width = "fake:lengths", 2

    def encode(self, texts: Any) -> Tensor:
        return encode(texts)


@pytest.fixture
def enrich(import_script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    module = import_script("data_tools/enrich_texts.py")
    monkeypatch.setattr(module, "load_text_tower", lambda name: Lengths())
    monkeypatch.setattr(
        module, "Household", lambda split, pictures: Selection(Household(split, pictures=pictures), [0])
    )
    monkeypatch.setattr(module, "CAPTIONS_BETWEEN_WRITINGS", 1)
    return lambda *arguments: module.main([str(argument) for argument in arguments])


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Three shapes in two shards, the last one without a name."""
    household = Household("test", num_points=200)
    for number, rows in enumerate(((0, 1), (2,))):
        clouds = []
        for row in rows:
            found = replace(targets(int(row < 2)), text_tower="fake:lengths", image_tower="fake:eye")
            clouds.append(household[row].replace(meta={"id": f"s{row}", "targets": found}))
        write_shard(tmp_path / f"train-{number:06}.tar", clouds)
    write_index(tmp_path / "train-index.npz", sorted(tmp_path.glob("*.tar")), {"s0": 0, "s2": 1}, ("a", "b"))
    np.savez(
        tmp_path / "bank.npz",
        features=np.array([[0.0, 0, 1], [2, 0.1, 0], [1, 0, 0]]),
        texts=np.array(["far", "near", "same"]),
        image_tower=np.array("fake:eye"),
    )
    return tmp_path


def test_shapes_get_captions_and_texts_of_a_bank(
    enrich: Callable[..., None], packed: Path, server: tuple[Server, list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    start, asked = server
    url = start(lambda body: 500 if len(asked) == 2 else said(f"caption {len(asked)}"))
    out = packed / "out"
    options = (packed, out, "--url", url, "--model", "m", "--bank", packed / "bank.npz", "--bank_count", 2)
    with pytest.raises(SystemExit, match="refused with 500"):
        enrich(*options, "--shard_size", 2)
    enrich(*options, "--shard_size", 2)  # the caption that is there is not asked for again
    assert len(asked) == 4
    assert "3 shapes with more texts" in capsys.readouterr().out
    assert sorted(path.name for path in out.glob("*.tar")) == ["train-000000.tar", "train-000001.tar"]
    found = AlignedShards(out)
    assert (found.labels.tolist(), found.classes) == ([0, -1, 1], ("a", "b"))
    first, last = found[0].meta["targets"], found[2].meta["targets"]
    assert first.texts == ("name", "caption 1", "same", "near")
    assert first.text_kinds == ("raw", "caption:vlm", "retrieval", "retrieval")
    average = first.text_features[1]  # over templates, of unit length
    assert average.norm() == pytest.approx(1, abs=1e-3)
    assert first.text_features[2:].tolist() == [[4, 1], [4, 1]]
    assert (last.texts, last.text_tower, last.image_tower) == (
        ("caption 4", "same", "near"),
        *("fake:lengths", "fake:eye"),
    )
    assert torch.equal(found[1].xyz, AlignedShards(packed)[1].xyz)
    with pytest.raises(SystemExit, match="made with other options"):
        enrich(*options, "--shard_size", 3)
    kinds = Counter(
        ChooseTargets()(found[0], torch.Generator().manual_seed(seed)).meta["targets"].text_kinds[0]
        for seed in range(300)
    )
    assert kinds.keys() == {"raw", "caption:vlm", "retrieval"}
    assert min(kinds.values()) > 70  # a third each, of which 70 is 3.7 standard deviations below


def test_what_is_shown_to_a_captioner(
    enrich: Callable[..., None], packed: Path, server: tuple[Server, list[Any]]
) -> None:
    """A picture from a folder, the set's own, or one that is drawn."""
    start, asked = server
    url = start(lambda body: said("x"))

    def shown() -> NDArray[np.uint8]:
        address = asked[-1][2]["messages"][0]["content"][1]["image_url"]["url"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))

    model = ("--url", url, "--model", "m")
    enrich(packed, packed / "drawn", *model)
    assert shown().shape == (384, 384, 3)
    assert 0.02 < (shown() < 250).any(2).mean() < 0.9  # something, on white
    own = np.random.default_rng(0).integers(0, 255, (5, 7, 4), np.uint8)
    own[..., 3] = 255
    own[0, 0] = (0, 0, 0, 0)  # not black but what is behind
    for number in range(3):
        Image.fromarray(own).save(packed / f"s{number}.png")
    enrich(packed, packed / "given", *model, "--pictures", packed)
    own[0, 0] = 255
    assert np.array_equal(shown(), own[..., :3])
    (packed / "s1.png").unlink()
    with pytest.raises(SystemExit, match=r"--pictures: there is no .*s1\.png, and no \.jpg"):
        enrich(packed, packed / "lost", *model, "--pictures", packed)

    cloud = Household("train", pictures=True)[0]

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, content: Any) -> dict[str, Tensor]:
            return {name: torch.ones(1, 2) for name in ("original", "prompt_avg", "image")}

        def identity(self) -> dict[str, Any]:
            return {"name": self.name}

    for kind, tower in (("texts", "fake:lengths"), ("images", "fake:eye")):
        precompute([(str(cloud.meta["id"]), "x")], Fake(tower), packed / "features" / kind)
    enrich("household", packed / "objects", "--features", packed / "features", *model)
    assert cloud.image is not None
    assert np.array_equal(shown(), cloud.image.numpy())
    assert AlignedShards(packed / "objects")[0].meta["targets"].text_kinds == ("raw", "caption:vlm")


def test_texts_of_another_space_are_not_mixed_in(enrich: Callable[..., None], packed: Path, tmp_path: Path) -> None:
    bank = packed / "bank.npz"
    with np.load(bank) as file:
        arrays = dict(file)
    np.savez(packed / "other.npz", **{**arrays, "image_tower": np.array("fake:ear")})
    with pytest.raises(SystemExit, match=r"other\.npz is of fake:ear, the shapes' picture features are of fake:eye"):
        enrich(packed, packed / "a", "--bank", packed / "other.npz")
    np.savez(packed / "nameless.npz", features=arrays["features"], texts=arrays["texts"])
    with pytest.raises(SystemExit, match="has no image_tower: a bank is"):
        enrich(packed, packed / "b", "--bank", packed / "nameless.npz")
    write_shard(packed / "plain-000000.tar", [Household("test")[0].replace(meta={"id": "x", "targets": targets()})])
    write_index(packed / "plain-index.npz", [packed / "plain-000000.tar"])
    with pytest.raises(SystemExit, match="do not say which tower made their features: name it"):
        enrich(packed, packed / "c", "--split", "plain", "--bank", bank)
    write_shard(
        packed / "far-000000.tar",
        [Household("test")[0].replace(meta={"id": "x", "targets": replace(targets(), text_tower="fake:other")})],
    )
    write_index(packed / "far-index.npz", [packed / "far-000000.tar"])
    with pytest.raises(SystemExit, match="are of fake:other, fake:lengths has another space"):
        enrich(packed, packed / "d", "--split", "far", "--bank", bank, "--text_tower", "fake:lengths")
    with pytest.raises(SystemExit):
        enrich(packed, packed / "e")
