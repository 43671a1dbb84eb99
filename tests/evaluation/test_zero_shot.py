"""Zero-shot scores and the index of shapes, on vectors of known angles."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pc3d.evaluation import Features, ShapeIndex, rank_classes, zero_shot
from pc3d.evaluation.shape_index import weights_digest

CLASSES = ("a", "b", "c", "never", "absent")


def directions(degrees: list[float]) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_top_k_and_the_mean_over_the_classes_that_occur() -> None:
    """Class texts at 0, 90, 180, 270 and 45 degrees."""
    texts = directions([0, 90, 180, 270, 45])
    labels = np.array([0, 0, 0, 1, 2, -1])
    values = 3 * directions([10, 30, 80, 100, 100, 5])
    # Nearest: a, absent, b (then absent, a), b, b (then absent, c).
    result = zero_shot(Features(values, labels, CLASSES), texts, ranks=(1, 2, 3, 9))
    assert result.top == {1: 2 / 5, 2: 3 / 5, 3: 5 / 5}
    assert result.scores.mean_class_accuracy == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert (result.num_test, result.num_unlabelled, result.num_classes) == (5, 1, 5)
    assert result.to_row("m").metrics["top@3"] == 1.0
    assert "top-1   40.0 %" in str(result)


def test_ranking_and_its_ties() -> None:
    order, cosine = rank_classes(directions([0]), np.concatenate([directions([90, 0]), directions([0, 60])]))
    assert order.tolist() == [[1, 2, 3, 0]]
    np.testing.assert_allclose(cosine, [[1, 1, 0.5, 0]], atol=1e-7)
    with pytest.raises(ValueError, match=r"must be \(n, D\) and \(C, D\), got \(1, 2\) and \(1, 3\)"):
        rank_classes(directions([0]), np.ones((1, 3)))
    with pytest.raises(ValueError, match="class_vectors of class 1 are not finite"):
        rank_classes(directions([0]), np.array([[0.0, 1.0], [np.nan, 1.0]]))
    with pytest.raises(ValueError, match="labels go up to 4, but there are 3 class_vectors"):
        zero_shot(Features(directions([0]), np.array([4])), directions([0, 1, 2]))


def test_an_index_finds_what_brute_force_finds_and_comes_back(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(500, 16)).astype(np.float32)
    names = [f"shape {i}" for i in range(500)]
    index = ShapeIndex(tmp_path, dim=16, made_by={"encoder": "e", "digest": "d"})
    assert index.add(names[:300], vectors[:300], [{"row": i} for i in range(300)]) == 300
    index.save()
    again = ShapeIndex(tmp_path, dim=16, made_by={"digest": "d"})
    assert again.add(names, vectors, [{"row": i} for i in range(500)]) == 200
    again.save()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "index.json",
        "shapes-000002.jsonl",
        "shapes-000002.usearch",
    ]
    found = ShapeIndex(tmp_path)
    assert len(found) == 500
    assert "shape 499" in found
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for query in generator.normal(size=(5, 16)):
        cosine = unit @ (query / np.linalg.norm(query))
        hits = found.search(query, 10, exact=True)
        assert [hit.id for hit in hits] == [names[i] for i in np.argsort(-cosine)[:10]]
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(cosine)[::-1][:10], atol=2e-3)
        assert hits[0].record == {"row": int(cosine.argmax())}
        near = found.search(query, 10)
        assert len({hit.id for hit in near} & {hit.id for hit in hits}) >= 9
    pair = unit[[3, 4]]
    least = (unit @ pair.T).min(1)
    assert found.search(pair, 3, exact=True)[0].id == names[int(least.argmax())]
    assert ShapeIndex(tmp_path / "empty", dim=4).search(np.ones(4)) == []


@pytest.mark.parametrize("exact", [True, False])
def test_what_is_near_to_all_may_be_among_the_nearest_of_none(exact: bool) -> None:
    """Of 3,000 shapes, the best for two queries far apart is beyond the first 500 of each."""
    generator = np.random.default_rng(0)
    unit = generator.normal(size=(3000, 8))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    index = ShapeIndex("unused", dim=8)
    index.add([str(row) for row in range(3000)], unit)
    queries = np.stack([unit[0], generator.normal(size=8) - 3 * unit[0]])
    cosine = unit @ (queries / np.linalg.norm(queries, axis=1, keepdims=True)).T
    best = int(cosine.min(1).argmax())
    assert ((cosine > cosine[best]).sum(0) > 500).all()
    assert index.search(queries, 1, exact=exact)[0].id == str(best)


def test_each_query_has_a_scale_of_its_own() -> None:
    index = ShapeIndex("unused", dim=2)
    index.add(["a", "b"], directions([0, 60]))
    # Cosines with the queries at 0 and 90 degrees: a 1 and 0, b 1/2 and 0.866; the second counts half.
    hits = index.search(directions([0, 90]), exact=True, scale=[1.0, 0.5])
    assert [(hit.id, round(hit.score, 2)) for hit in hits] == [("b", 0.43), ("a", 0.0)]
    hits = index.search(directions([0, 90]), exact=True, scale=[0.5, 1.0])
    assert [(hit.id, round(hit.score, 2)) for hit in hits] == [("b", 0.25), ("a", 0.0)]
    with pytest.raises(ValueError, match=r"scale must be a number, or one for each of 2 queries, got \(3,\)"):
        index.search(directions([0, 90]), scale=[1, 1, 1])


def test_renewed_shapes_have_their_new_vectors_after_another_opening(tmp_path: Path) -> None:
    index = ShapeIndex(tmp_path, dim=4)
    index.add(["a", "b", "c"], np.eye(4)[:3], [{"row": 0}, {"row": 1}, {"row": 2}])
    assert index.add(["b", "d"], np.eye(4)[[0, 1]], [{"row": 5}, {"row": 3}]) == 1  # b is passed over
    assert index.record("b") == {"row": 1}
    assert index.add(["b", "d", "e"], np.eye(4)[[3, 2, 2]], [{"row": 6}, {"row": 7}, {"row": 8}], renew=True) == 1
    index.save()
    found = ShapeIndex(tmp_path)
    assert found.ids == ["a", "b", "c", "d", "e"]
    assert [found.record(name) for name in ("b", "d", "none")] == [{"row": 6}, {"row": 7}, None]
    for exact in (True, False):
        assert [hit.id for hit in found.search(np.eye(4)[3], 1, exact=exact)] == ["b"]
        assert {hit.id for hit in found.search(np.eye(4)[2], 3, exact=exact)} == {"c", "d", "e"}
        assert found.search(np.eye(4)[1], 1, exact=exact)[0].score == pytest.approx(0, abs=1e-6)


def test_opening_takes_little_more_memory_than_is_kept(tmp_path: Path) -> None:
    index = ShapeIndex(tmp_path, dim=2)
    index.add([f"shape {row}" for row in range(5000)], np.random.default_rng(0).normal(size=(5000, 2)))
    index.save()
    tracemalloc.start()
    try:
        found = ShapeIndex(tmp_path)
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.ids == index.ids
    assert most < 1.2 * kept


def test_an_addition_that_was_broken_off_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = ShapeIndex(tmp_path, dim=3)
    index.add(["a"], np.ones((1, 3)))
    index.save()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    whole = index._index
    monkeypatch.setattr(index, "_index", SimpleNamespace(ndim=3, add=interrupted))
    with pytest.raises(KeyboardInterrupt):
        index.add(["b"], np.ones((1, 3)))
    monkeypatch.setattr(index, "_index", whole)
    with pytest.raises(RuntimeError, match="1 vectors for 2 shapes, an addition was broken off"):
        index.save()
    assert ShapeIndex(tmp_path).ids == ["a"]


def test_memory_is_what_the_library_needs_per_vector() -> None:
    """The file holds vectors and graph; in memory there are hashed keys beside, and room to grow."""
    index = ShapeIndex("unused", dim=64)
    vectors = np.random.default_rng(0).normal(size=(2000, 64)).astype(np.float32)
    index.add([str(i) for i in range(len(vectors))], vectors)
    of_file = index._index.serialized_length / 2000
    assert of_file < index.bytes_for(1, 64) < 1.5 * of_file


def test_bad_vectors_and_damaged_folders_are_refused(tmp_path: Path) -> None:
    index = ShapeIndex(tmp_path, dim=3)
    with pytest.raises(ValueError, match=r"vectors must be \(1, 3\) with a record each, got \(1, 2\) and 1"):
        index.add(["a"], np.ones((1, 2)))
    with pytest.raises(ValueError, match="the vector of b is 0 or not finite"):
        index.add(["a", "b"], np.array([[1.0, 0, 0], [0, 0, 0]]))
    index.add(["a"], np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"queries must be \(3,\) or \(Q, 3\), got \(1, 2\)"):
        index.search(np.ones(2))
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        index.search(np.ones(3), 0)
    index.save()
    with pytest.raises(ValueError, match="is an index of 3 dimensions, got vectors of 4"):
        ShapeIndex(tmp_path, dim=4)
    with pytest.raises(FileNotFoundError, match="holds no index of shapes"):
        ShapeIndex(tmp_path / "none")
    (tmp_path / "shapes-000001.jsonl").write_text("")
    with pytest.raises(ValueError, match="is damaged: 1 vectors for 0 shapes"):
        ShapeIndex(tmp_path)
    head = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**head, "format": "another"}))
    with pytest.raises(ValueError, match="is not a whole index of shapes"):
        ShapeIndex(tmp_path)


def test_a_failed_save_leaves_the_index_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = ShapeIndex(tmp_path, dim=3)
    index.add(["a"], np.ones((1, 3)))
    index.save()
    index.add(["b"], np.ones((1, 3)))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pc3d._files.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        index.save()
    assert ShapeIndex(tmp_path).ids == ["a"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    index = ShapeIndex(tmp_path, dim=3)
    index.add(["a"], np.ones((1, 3)))
    index.save()
    (tmp_path / "shapes-000002.usearch").mkdir()  # a folder where the next file belongs
    index.add(["b"], np.eye(3)[:1])
    with pytest.raises(OSError, match=r"shapes-000002\.usearch cannot be written \(.+\): the index is as it was"):
        index.save()
    assert ShapeIndex(tmp_path).ids == ["a"]


def test_digests_tell_weights_apart() -> None:
    layer = torch.nn.Linear(2, 2)
    before = weights_digest(layer)
    assert weights_digest(layer) == before
    with torch.no_grad():
        layer.bias += 1
    assert weights_digest(layer) != before
