from __future__ import annotations

import pytest
import torch

from pc3d.data import Household, PointBatch, PointCloud, collate


def cloud_of(num_points: int, **fields: object) -> PointCloud:
    return PointCloud(xyz=torch.arange(3.0 * num_points).reshape(num_points, 3), **fields)


def test_collate_packs_clouds_of_any_length_in_order() -> None:
    clouds = [cloud_of(n, label=n, segment=torch.full((n,), n), meta={"id": str(n)}) for n in (3, 0, 5, 1)]
    batch = collate(clouds)
    assert batch.offsets.tolist() == [0, 3, 3, 8, 9]
    assert batch.offsets.dtype == torch.int64
    assert batch.lengths.tolist() == [3, 0, 5, 1]
    assert batch.label.tolist() == [3, 0, 5, 1]
    assert len(batch) == 4
    assert batch.rgb is None
    for b, cloud in enumerate(clouds):
        rows = slice(int(batch.offsets[b]), int(batch.offsets[b + 1]))
        assert torch.equal(batch.xyz[rows], cloud.xyz)
        assert torch.equal(batch.segment[rows], cloud.segment)
        assert batch.meta[b] == cloud.meta


def test_unbind_undoes_collate_on_real_objects(household_test: Household) -> None:
    clouds = [household_test[i].select(slice(100 + i)) for i in range(5)]
    for before, after in zip(clouds, collate(clouds).unbind(), strict=True):
        for name in ("xyz", "rgb", "normal"):
            assert torch.equal(getattr(before, name), getattr(after, name))
        assert (before.label, before.text, before.meta) == (after.label, after.text, after.meta)


def test_dense_is_a_view_of_equal_clouds(household_test: Household) -> None:
    batch = collate([household_test[i] for i in range(4)])
    dense = batch.dense()
    assert dense.shape == (4, 2048, 3)
    assert dense.data_ptr() == batch.xyz.data_ptr()
    assert torch.equal(dense[2], household_test[2].xyz)
    assert torch.equal(batch.dense("normal")[3], household_test[3].normal)


@pytest.mark.parametrize("lengths", [(3, 5), (4, 4, 1), (0, 2), (2, 4, 3)])
def test_dense_refuses_unequal_clouds(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"{min(lengths)} to {max(lengths)} points"):
        collate([cloud_of(n) for n in lengths]).dense()


def test_dense_refuses_an_absent_field_and_an_unknown_one() -> None:
    batch = collate([cloud_of(2)])
    with pytest.raises(ValueError, match="has no rgb"):
        batch.dense("rgb")
    with pytest.raises(ValueError, match="name must be one of"):
        batch.dense("colour")


def test_dense_of_empty_clouds() -> None:
    assert collate([cloud_of(0), cloud_of(0)]).dense().shape == (2, 0, 3)
    empty = PointBatch(xyz=torch.zeros(0, 3), offsets=torch.zeros(1, dtype=torch.int64))
    assert empty.dense().shape == (0, 0, 3)


def test_collate_fills_labels_and_refuses_partial_fields() -> None:
    assert collate([cloud_of(1, label=2), cloud_of(1)]).label.tolist() == [2, -1]
    assert collate([cloud_of(1), cloud_of(1)]).label is None
    with_rgb = cloud_of(2, rgb=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"1 of 2 clouds have no rgb \(first: b\).*KeepFields"):
        collate([with_rgb, cloud_of(2, meta={"id": "b"})])
    with pytest.raises(ValueError, match="1 of 2 clouds have no text"):
        collate([cloud_of(1, text="a"), cloud_of(1)])
    with pytest.raises(ValueError, match="at least one"):
        collate([])


def test_collate_stacks_pictures_of_one_size() -> None:
    small, large = torch.zeros(2, 2, 3, dtype=torch.uint8), torch.zeros(3, 2, 3, dtype=torch.uint8)
    assert collate([cloud_of(1, image=small)] * 2).image.shape == (2, 2, 2, 3)
    with pytest.raises(ValueError, match="differ in size"):
        collate([cloud_of(1, image=small), cloud_of(1, image=large)])


def test_to_moves_every_tensor() -> None:
    batch = collate([cloud_of(2, label=1, rgb=torch.zeros(2, 3), text="a")]).to("meta")
    assert {batch.xyz.device.type, batch.offsets.device.type, batch.rgb.device.type} == {"meta"}
    assert batch.label.device.type == "meta"
    assert batch.text == ["a"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pinned_batches_reach_the_gpu(household_test: Household) -> None:
    batch = collate([household_test[i] for i in range(3)])
    pinned = batch.pin_memory()
    assert pinned.xyz.is_pinned()
    assert pinned.offsets.is_pinned()
    moved = pinned.to("cuda", non_blocking=True)
    assert torch.equal(moved.dense("rgb").cpu(), batch.dense("rgb"))


def test_select_cuts_every_per_point_field(chair: PointCloud) -> None:
    chair = chair.replace(segment=torch.arange(len(chair)))
    index = torch.tensor([5, 5, 0])
    picked = chair.select(index)
    for name in ("xyz", "rgb", "normal", "segment"):
        assert torch.equal(getattr(picked, name), getattr(chair, name)[index])
    assert picked.label == chair.label
    mask = chair.xyz[:, 2] > 0
    assert len(chair.select(mask)) == int(mask.sum())


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"xyz": torch.zeros(3)}, ValueError, r"xyz must have shape \(N, 3\)"),
        ({"xyz": torch.zeros(3, 2)}, ValueError, r"xyz must have shape \(3, 3\)"),
        ({"xyz": torch.zeros(3, 3, dtype=torch.int64)}, TypeError, "xyz must be a floating-point"),
        ({"xyz": [[0.0, 0.0, 0.0]]}, TypeError, "xyz must be a torch.Tensor, got list"),
        ({"xyz": torch.zeros(3, 3), "rgb": torch.zeros(2, 3)}, ValueError, r"rgb must have shape \(3, 3\)"),
        ({"xyz": torch.zeros(3, 3), "normal": torch.zeros(3, 4)}, ValueError, r"normal must have shape \(3, 3\)"),
        ({"xyz": torch.zeros(3, 3), "segment": torch.zeros(3)}, TypeError, "segment must be int64"),
        ({"xyz": torch.zeros(3, 3), "segment": torch.zeros(4, dtype=torch.int64)}, ValueError, "segment must have"),
        ({"xyz": torch.zeros(3, 3), "image": torch.zeros(4, 4, 3)}, ValueError, "image must be uint8"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PointCloud(**fields)
