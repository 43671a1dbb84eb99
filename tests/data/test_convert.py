from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from pc3d.data import Household, MissingDataError, ModelNetMeshes, ModelNetResampled, ObjectSet

TOOLS = Path(__file__).parents[2] / "data_tools"


@pytest.fixture(scope="module")
def convert(import_script: Callable[[str], ModuleType]) -> ModuleType:
    return import_script("data_tools/convert.py")


def call(convert: ModuleType, *arguments: object) -> None:
    convert.main([*map(str, arguments), "--workers", "1"])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_meshes_become_shards_that_read_the_same(tmp_path: Path, assets: Path, convert: ModuleType) -> None:
    root = assets / "modelnet_off"
    call(convert, "modelnet-meshes", root, tmp_path, "--num_points", 512, "--shard_size", 3)
    names = {"train-000.npz", "train-001.npz", "train.json", "test-000.npz", "test.json", "manifest.sha256"}
    assert names <= set(contents(tmp_path))
    subprocess.run(["sha256sum", "--check", "--quiet", "manifest.sha256"], cwd=tmp_path, check=True)
    direct = ModelNetMeshes(root, "train", num_points=512)
    stored = ObjectSet(tmp_path, "train", num_points=512)
    assert stored.classes == direct.classes
    assert torch.equal(stored.labels, direct.labels)
    assert stored[1].meta["id"] == "chair/train/chair_0002"
    for row in range(4):
        order = stored[row].xyz.sort(dim=0).values
        assert torch.equal(order, direct[row].xyz.sort(dim=0).values)
        assert (stored[row].normal.norm(dim=1) - 1).abs().max() < 1e-5


def test_ctrl_c_has_an_exit_code_and_says_how_it_goes_on(
    tmp_path: Path, convert: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "run", stop)
    with pytest.raises(SystemExit) as end:
        call(convert, "modelnet-meshes", tmp_path, tmp_path)
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted: the same command goes on from here\n"


def test_normalised_half_precision(tmp_path: Path, assets: Path, convert: ModuleType) -> None:
    root = assets / "modelnet_resampled"
    arguments = ("--num_points", 1000, "--normalize", "--dtype", "float16", "--split", "test", "--fields")
    call(convert, "modelnet-resampled", root, tmp_path, *arguments)
    stored = ObjectSet(tmp_path, "test", num_points=1000)
    original = ModelNetResampled(root, "test")
    for row in range(2):
        cloud, raw = stored[row], original[row].xyz
        assert cloud.normal is None
        assert cloud.xyz.norm(dim=1).max().item() == pytest.approx(1, abs=1e-3)
        # Metric distances survive: radius_m undoes the scale, and every stored point is one of the file's.
        offset = (raw.amin(dim=0) + raw.amax(dim=0)) / 2
        restored = cloud.xyz * cloud.meta["radius_m"]
        distance = torch.cdist(restored, raw - offset).amin(dim=1)
        assert distance.max() < 1e-3


def test_running_twice_changes_nothing_and_a_gap_is_filled(tmp_path: Path, assets: Path, convert: ModuleType) -> None:
    arguments = ("shapenet55", assets / "shapenet55", tmp_path, "--num_points", 1024, "--shard_size", 1)
    call(convert, *arguments)
    first = contents(tmp_path)
    stamp = (tmp_path / "train-000.npz").stat().st_mtime_ns
    (tmp_path / "train-001.npz").unlink()
    (tmp_path / "train.json").unlink()
    call(convert, *arguments)
    assert contents(tmp_path) == first
    assert (tmp_path / "train-000.npz").stat().st_mtime_ns == stamp


def test_shards_say_which_axis_points_up(tmp_path: Path, assets: Path, convert: ModuleType) -> None:
    for kind, source, up in (("shapenet55", "shapenet55", "y"), ("modelnet-meshes", "modelnet_off", "z")):
        call(convert, kind, assets / source, tmp_path / kind, "--num_points", 1024)
        assert ObjectSet(tmp_path / kind, num_points=1024).up == up


def test_what_an_earlier_version_wrote_learns_which_axis_points_up(
    tmp_path: Path, assets: Path, convert: ModuleType
) -> None:
    arguments = ("shapenet55", assets / "shapenet55", tmp_path, "--num_points", 1024)
    call(convert, *arguments)
    path, manifest = tmp_path / "train.json", tmp_path / "manifest.sha256"
    new, known = path.read_text(), manifest.read_text()
    path.write_text(new.replace(' "up": "y",\n', ""))
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in (new, path.read_text())]
    manifest.write_text(known.replace(*digests))
    assert ObjectSet(tmp_path, num_points=1024).up == "z"
    call(convert, *arguments)
    assert (path.read_text(), manifest.read_text()) == (new, known)
    path.write_text("{}")
    with pytest.raises(SystemExit, match=r"train\.json exists and is not what this conversion wrote"):
        call(convert, *arguments)
    assert path.read_text() == "{}"


def test_nothing_is_overwritten(tmp_path: Path, assets: Path, convert: ModuleType) -> None:
    arguments = ("shapenet55", assets / "shapenet55", tmp_path, "--num_points", 1024)
    call(convert, *arguments)
    with pytest.raises(SystemExit, match=r"train-conversion\.txt exists with other content"):
        call(convert, *arguments, "--seed", 1)
    shard = tmp_path / "train-000.npz"
    shard.write_bytes(b"something of mine")
    with pytest.raises(SystemExit, match=r"train-000\.npz exists and is not what this conversion wrote"):
        call(convert, *arguments)
    assert shard.read_bytes() == b"something of mine"


def test_bad_files_stop_the_run_or_are_listed(
    tmp_path: Path, assets: Path, convert: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "meshes"
    shutil.copytree(assets / "modelnet_off", root)
    bad = root / "lamp" / "train" / "lamp_0001.off"
    bad.write_bytes(bad.read_bytes()[:5000])
    arguments = ("modelnet-meshes", root, tmp_path / "out", "--num_points", 128, "--shard_size", 1)
    with pytest.raises(SystemExit, match=r"lamp_0001\.off.*truncated"):
        call(convert, *arguments)
    assert (tmp_path / "out" / "train-001.npz").is_file()  # what was done before stays
    shutil.rmtree(tmp_path / "out")
    call(convert, *arguments, "--on_error", "report")
    stored = ObjectSet(tmp_path / "out", "train", num_points=128)
    assert stored.labels.tolist() == [0, 0, 1]
    assert [file.path for file in stored.skipped] == [bad]
    assert "truncated" in stored.skipped[0].reason
    assert f"left out {bad}" in capsys.readouterr().out


def test_folders_of_mixed_files(tmp_path: Path, assets: Path, convert: ModuleType) -> None:
    for name in ("bread", "crate"):
        (tmp_path / "in" / name).mkdir(parents=True)
        shutil.copy(assets / "meshes" / f"{name}.glb", tmp_path / "in" / name / "mesh.glb")
    arguments = ("folder", tmp_path / "in", tmp_path / "out", "--split", "all", "--num_points", 256)
    call(convert, *arguments)
    stored = ObjectSet(tmp_path / "out", "all", num_points=256)
    assert [cloud.meta["id"] for cloud in (stored[0], stored[1])] == ["bread/mesh", "crate/mesh"]
    assert stored[0].rgb.std() > 0.05
    shutil.copy(assets / "meshes" / "crate.stl", tmp_path / "in" / "crate")
    with pytest.raises(SystemExit, match="other options or files"):
        call(convert, *arguments)
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(SystemExit, match=r"crate\.stl: has no rgb, which the first file has; --fields"):
        call(convert, *arguments)


def test_fields_that_the_first_file_lacks_are_told_with_the_files(
    tmp_path: Path, convert: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    points = np.random.default_rng(0).uniform(0, 1, (40, 9))
    points[:, 6:] /= np.linalg.norm(points[:, 6:], axis=1, keepdims=True)
    header = "x y z red green blue nx ny nz"
    for kind, name, columns in (("a", "1", 3), ("a", "2", 9), ("b", "3", 6), ("b", "4", 3)):
        (tmp_path / "in" / kind).mkdir(parents=True, exist_ok=True)
        named = " ".join(header.split()[:columns])
        np.savetxt(tmp_path / "in" / kind / f"{name}.xyz", points[:, :columns], header=named, comments="")
    arguments = ("folder", tmp_path / "in", tmp_path / "out", "--split", "all", "--num_points", 32, "--shard_size", 2)
    call(convert, *arguments)
    told = capsys.readouterr().out
    assert "left out rgb: the first file has none, 2 of 4 have some; without: a/1, b/4." in told
    assert "left out normal: the first file has none, 1 of 4 have some; without: a/1, b/3, b/4." in told
    description = json.loads((tmp_path / "out" / "all.json").read_text())
    assert description["files_without"] == {"rgb": ["a/1", "b/4"], "normal": ["a/1", "b/3", "b/4"]}
    stored = ObjectSet(tmp_path / "out", "all", num_points=32)
    assert [stored[row].rgb for row in range(4)] == [None] * 4
    call(convert, *arguments[:2], tmp_path / "chosen", *arguments[3:], "--fields")
    assert "left out rgb" not in capsys.readouterr().out
    # A shard of an interrupted run that an earlier version wrote goes with those of this one.
    shard, manifest = tmp_path / "out" / "all-000.npz", tmp_path / "out" / "manifest.sha256"
    with np.load(shard) as arrays:
        older = {name: values for name, values in arrays.items() if name != "unkept"}
    before = hashlib.sha256(shard.read_bytes()).hexdigest()
    np.savez(shard, **older)
    manifest.write_text(manifest.read_text().replace(before, hashlib.sha256(shard.read_bytes()).hexdigest()))
    (tmp_path / "out" / "all.json").unlink()
    call(convert, *arguments)
    told = capsys.readouterr().out
    # What a/1 and a/2 have was not written down: nothing is said of them.
    assert "left out rgb: the first file has none, 1 of 2 have some; without: b/4." in told
    assert "not known of 2 objects, whose shards an earlier version wrote" in told
    description = json.loads((tmp_path / "out" / "all.json").read_text())
    assert description["files_without"] == {"rgb": ["b/4"]}
    assert len(ObjectSet(tmp_path / "out", "all", num_points=32)) == 4


def test_a_column_of_parts_without_their_list(convert: ModuleType, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        convert.main(["folder", str(tmp_path), str(tmp_path / "out"), "--part_column", "kind"])
    assert "--part_column needs --parts" in capsys.readouterr().err


def test_the_variant_of_another_kind_is_refused(convert: ModuleType, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        convert.main(["modelnet-meshes", str(tmp_path), str(tmp_path / "out"), "--variant", "modelnet10"])
    assert "--variant is for modelnet-resampled, and modelnet-meshes has no use for it" in capsys.readouterr().err


@pytest.mark.parametrize("tool", sorted(path.name for path in TOOLS.glob("*.py")))
def test_options_of_tools_are_spelt_as_those_of_the_command(tool: str) -> None:
    options = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", (TOOLS / tool).read_text()))
    assert options
    assert not [option for option in options if "-" in option.removeprefix("--")]


def test_parts_of_points_are_kept(
    tmp_path: Path, household: Household, convert: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "clouds"
    clouds, heights = {}, {"low": 4, "high": 9}
    for index, place in enumerate(("train/bed", "train/chair", "test/bed", "test/chair")):
        xyz = household[index].xyz.numpy()
        height = np.where(xyz[:, 2] < 0, heights["low"], heights["high"])
        height[:40] = 7  # no part
        (root / place).mkdir(parents=True)
        np.save(root / place / f"{index}.npy", np.column_stack([xyz, height]))
        clouds[f"{place}/{index}"] = xyz
    (tmp_path / "parts.txt").write_text("4 low\n9 high\n")
    command = ("folder", root, tmp_path / "out", "--num_points", 512, "--parts", tmp_path / "parts.txt")
    call(convert, *command)
    assert re.search(r"low \d+\.\d %, high \d+\.\d %, no part [1-3]\.\d %", capsys.readouterr().out)
    for split in ("train", "test"):
        found = ObjectSet(tmp_path / "out", split, num_points=512)
        assert (found.classes, found.parts) == (("bed", "chair"), ("low", "high"))
        for cloud in found:
            assert cloud.segment is not None
            xyz = clouds[cloud.meta["id"]]
            place, row = (torch.cdist(cloud.xyz, torch.from_numpy(xyz)) < 1e-7).nonzero().T
            assert place.tolist() == list(range(512))
            expected = torch.where(torch.from_numpy(xyz[:, 2] < 0)[row], 0, 1).where(row >= 40, -1)
            assert cloud.segment.tolist() == expected.tolist()
    call(convert, *command)
    (tmp_path / "parts.txt").write_text("4 high\n9 low\n")
    with pytest.raises(SystemExit, match="exists with other content"):
        call(convert, *command)
    (tmp_path / "parts.txt").write_text("low\nhigh\n")
    with pytest.raises(SystemExit, match=r"has points of the classes 4, 7, 9, and there are 2 names"):
        call(convert, *command[:2], tmp_path / "other", *command[3:])
    with pytest.raises(SystemExit) as caught:
        call(convert, "shapenet55", *command[1:])
    assert caught.value.code == 2


def test_a_class_that_one_split_lacks_is_told_before_anything_is_written(tmp_path: Path, convert: ModuleType) -> None:
    for place in ("train/bolt", "train/nut", "test/bolt"):
        (tmp_path / "in" / place).mkdir(parents=True)
        np.save(tmp_path / "in" / place / "one.npy", np.random.default_rng(0).random((20, 3)))
    arguments = ("folder", tmp_path / "in", tmp_path / "out", "--num_points", 20)
    with pytest.raises(SystemExit, match=r"same classes.*got 2 and 1: 'nut' in train alone.*empty sub-folder"):
        call(convert, *arguments)
    assert not (tmp_path / "out").exists()
    (tmp_path / "in" / "test" / "nut").mkdir()  # the remedy
    call(convert, *arguments)
    assert ObjectSet(tmp_path / "out", "test", num_points=20).classes == ("bolt", "nut")


def test_too_few_points_and_wrong_arguments(tmp_path: Path, assets: Path, convert: ModuleType) -> None:
    with pytest.raises(SystemExit, match="has 1000 points, --num_points asks for 8192"):
        call(convert, "modelnet-resampled", assets / "modelnet_resampled", tmp_path)
    with pytest.raises(SystemExit, match=r"ModelNetMeshes(.*\n)*looked for in"):
        call(convert, "modelnet-meshes", tmp_path / "nowhere", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    for wrong in (["--num_points", "0"], ["--dtype", "float16"], ["--kind", "x"]):
        with pytest.raises(SystemExit) as caught:
            call(convert, "shapenet55", assets / "shapenet55", tmp_path, *wrong)
        assert caught.value.code == 2


def test_a_refused_conversion_leaves_nothing_that_another_would_meet(
    tmp_path: Path, household: Household, convert: ModuleType
) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    (root / "thing").mkdir(parents=True)
    for index in range(4):
        np.save(root / "thing" / f"{index}.npy", household[index].xyz.numpy())
    arguments = ("folder", root, out, "--split", "all", "--shard_size", 2)
    with pytest.raises(SystemExit, match="--num_points asks for 8192"):
        call(convert, *arguments)
    assert list(out.iterdir()) == []
    (root / "thing" / "2.npy").write_bytes(b"<html>")
    with pytest.raises(SystemExit, match="cannot be read as NPY"):
        call(convert, *arguments, "--num_points", 2000)
    # What was made stays, with the record that other options must not be mixed into it.
    assert {path.name for path in out.iterdir()} == {"all-000.npz", "all-conversion.txt", "manifest.sha256"}
    with pytest.raises(SystemExit, match=r"all-conversion\.txt exists with other content"):
        call(convert, *arguments, "--num_points", 1000)
    np.save(root / "thing" / "2.npy", household[2].xyz.numpy())
    call(convert, *arguments, "--num_points", 2000)
    assert len(ObjectSet(out, "all", num_points=2000)) == 4


def test_a_killed_run_goes_on(tmp_path: Path, household: Household, convert: ModuleType) -> None:
    """Two workers killed without warning, called again with one: the result is that of an undisturbed run."""
    root = tmp_path / "in"
    (root / "thing").mkdir(parents=True)
    for index in range(60):
        np.save(root / "thing" / f"{index:03}.npy", household[index].xyz.numpy())
    options = ["--split", "all", "--num_points", "2000", "--shard_size", "1"]
    command = [sys.executable, TOOLS / "convert.py", "folder", root, tmp_path / "killed", *options, "--workers", "2"]
    killed = subprocess.Popen(list(map(str, command)), start_new_session=True)
    while not (tmp_path / "killed" / "all-003.npz").exists():
        assert killed.poll() is None
        time.sleep(0.001)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "all.json").exists()
    for folder in ("killed", "whole"):
        call(convert, "folder", root, tmp_path / folder, *options)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert len(ObjectSet(tmp_path / "killed", "all", num_points=2000)) == 60


def test_a_share_of_each_class_is_set_aside_for_test(
    tmp_path: Path, convert: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    for name, count in (("lamp", 10), ("chair", 5), ("rug", 1)):
        (root / name).mkdir(parents=True)
        for index in range(count):
            points = np.random.default_rng([count, index]).normal(size=(64, 3)).astype(np.float32)
            np.save(root / name / f"{name}{index}.npy", points)
    options = ("--num_points", 64, "--normalize")
    with pytest.raises(SystemExit, match=r"--test_share 0\.2 makes train and test"):
        call(convert, "folder", root, out, *options)
    call(convert, "folder", root, out, *options, "--test_share", 0.2)
    train, test = (ObjectSet(out, split, num_points=64) for split in ("train", "test"))
    assert train.classes == test.classes == ("chair", "lamp", "rug")
    assert train.labels.bincount(minlength=3).tolist() == [4, 8, 1]
    assert test.labels.bincount(minlength=3).tolist() == [1, 2, 0]
    ids = [str(cloud.meta["id"]) for part in (train, test) for cloud in (part[i] for i in range(len(part)))]
    assert sorted(ids) == sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.glob("*/*"))
    for part in (train, test):
        for cloud in (part[i] for i in range(len(part))):
            assert str(cloud.meta["id"]).startswith(part.classes[int(cloud.label)])

    (root / "train").mkdir()
    (root / "test").mkdir()
    for name in ("lamp", "chair", "rug"):
        shutil.copytree(root / name, root / "test" / name)
        (root / name).rename(root / "train" / name)
    with pytest.raises(SystemExit, match=r"--test_share 0\.2 is for files without splits, .*in has some"):
        call(convert, "folder", root, tmp_path / "other", "--test_share", 0.2)
    for wrong in (["folder", "--test_share", "1.5"], ["shapenet55", "--test_share", "0.2"]):
        with pytest.raises(SystemExit) as caught:
            call(convert, wrong[0], root, tmp_path / "other", *wrong[1:])
        assert caught.value.code == 2
    assert "--test_share must be above 0 and below 1, and is for a folder; got 1.5" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_splits_of_one_folder_have_the_same_fields(tmp_path: Path, convert: ModuleType) -> None:
    root = tmp_path / "in" / "lamp"
    root.mkdir(parents=True)
    for index in range(4):
        np.save(root / f"{index}.npy", np.random.default_rng(index).random((64, 6)))
    probe = tmp_path / "probe"
    call(convert, "folder", root.parent, probe, "--num_points", 64, "--test_share", 0.25)
    drawn = Path(str(ObjectSet(probe, "test", num_points=64)[0].meta["id"])).name
    np.save(root / f"{drawn}.npy", np.random.default_rng(9).random((64, 3)))  # the only one of test, without colours
    options = ("--num_points", 64, "--test_share", 0.25)
    with pytest.raises(SystemExit, match=rf"{drawn}\.npy: has no rgb, which the first file has"):
        call(convert, "folder", root.parent, tmp_path / "out", *options)


def test_files_that_are_no_clouds_are_listed_too(
    tmp_path: Path, household: Household, convert: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "in", tmp_path / "out"
    (root / "thing").mkdir(parents=True)
    np.save(root / "thing" / "0.npy", household[0].xyz.numpy())
    (root / "thing" / "scan.log").write_text("made by a scanner")
    (root / "thing" / "1.npy").write_bytes(b"<html>")
    with pytest.raises(SystemExit, match=r"scan\.log: has the ending '\.log'"):
        call(convert, "folder", root, out, "--split", "all", "--num_points", 2000)
    call(convert, "folder", root, out, "--split", "all", "--num_points", 2000, "--on_error", "report")
    assert "1 objects in 1 shards, 2 files left out" in capsys.readouterr().out
    reasons = {
        Path(file["path"]).name: file["reason"] for file in json.loads((out / "all.json").read_text())["skipped"]
    }
    assert reasons["scan.log"] == "has the ending '.log'"
    assert "cannot be read as NPY" in reasons["1.npy"]
    # Made into splits, what is of neither is listed once.
    (root / "thing" / "1.npy").unlink()
    for index in range(1, 6):
        np.save(root / "thing" / f"{index}.npy", household[index].xyz.numpy())
    arguments = (root, tmp_path / "splits", "--num_points", 2000, "--test_share", 0.2)
    call(convert, "folder", *arguments, "--on_error", "report")
    assert capsys.readouterr().out.count("scan.log: has the ending '.log'") == 1
    skipped = {
        split: json.loads((tmp_path / "splits" / f"{split}.json").read_text())["skipped"] for split in ("train", "test")
    }
    assert [Path(file["path"]).name for file in skipped["train"]] == ["scan.log"]
    assert skipped["test"] == []


def test_a_bad_file_is_named_by_whichever_process_reads_it(tmp_path: Path, household: Household) -> None:
    root = tmp_path / "in"
    (root / "thing").mkdir(parents=True)
    for index in range(4):
        np.save(root / "thing" / f"{index}.npy", household[index].xyz.numpy())
    (root / "thing" / "2.npy").write_bytes(b"<html>")
    options = ["--split", "all", "--num_points", "2000", "--shard_size", "1", "--workers", "2"]
    command = [sys.executable, TOOLS / "convert.py", "folder", root, tmp_path / "out", *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 1
    assert "thing/2.npy: cannot be read as NPY" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_embedded_set_can_be_rebuilt(tmp_path: Path) -> None:
    """From a larger version made of the embedded one, the builder gives the embedded one back."""
    embedded = Path(__file__).parents[2] / "pc3d" / "data" / "household"
    larger = tmp_path / "larger"
    larger.mkdir()
    for split in ("train", "test"):
        data = dict(np.load(embedded / f"{split}-000.npz"))
        for key in ("points", "normals", "rgb"):
            data[key] = np.concatenate([data[key], data[key][:, ::-1]], axis=1)
        np.savez(larger / f"{split}-000.npz", **data)
        shutil.copy(embedded / f"{split}-icons.npz", larger)
        description = json.loads((embedded / f"{split}.json").read_text())
        description["items"] = [{**item, "faces": 12} for item in description["items"]]
        (larger / f"{split}.json").write_text(json.dumps(description))
    build = [sys.executable, str(TOOLS / "build_household.py"), str(larger)]
    subprocess.run([*build, "--output", str(tmp_path / "out")], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*build, "--check"], check=True, stdout=subprocess.DEVNULL)
    for split in ("train", "test"):
        assert (tmp_path / "out" / f"{split}.json").read_text() == (embedded / f"{split}.json").read_text()
        assert torch.equal(Household(split, root=tmp_path / "out")[9].xyz, Household(split)[9].xyz)
    with pytest.raises(MissingDataError):
        Household("validation", root=tmp_path / "out")
