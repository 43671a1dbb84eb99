"""Build the object set that ships inside the package from a larger one in the same format.

    python data_tools/build_household.py FOLDER [--output pc3d/data/household] [--check]

FOLDER holds ``train.json``, ``test.json``, their shards and their ``-icons.npz``. Of each object the first 2,048
points stay: points are stored in random order, so that is a fair subsample. Values are not changed: float16
coordinates, int8 normals, uint8 colours and pictures. One shard per split, a ``manifest.sha256``, and nothing else.
The output is the same, byte for byte, for the same input and zlib.

``--check`` compares the content of what is there with what would be built, and writes nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

POINTS = 2048
LIMIT_BYTES = 15_000_000
KEPT = ("id", "label", "name", "tags", "category", "creator", "licence", "size_m", "duplicate_group")
SOURCE = "Sweet Home 3D additional furniture libraries 1.8"
CHANGES = "scaled to catalogue size, turned z-up, sampled to points, scaled into the unit ball; pictures resized"


def build_split(folder: Path, split: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The description, the shard and the pictures of one split."""
    described = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
    shards = [dict(np.load(folder / name, allow_pickle=False)) for name in described["shards"]]
    data = {key: np.concatenate([shard[key] for shard in shards]) for key in shards[0]}
    for key in ("points", "normals", "rgb"):
        data[key] = np.ascontiguousarray(data[key][:, :POINTS])
    icons = dict(np.load(folder / f"{split}-icons.npz", allow_pickle=False))
    if [str(i) for i in data["id"]] != [item["id"] for item in described["items"]]:
        raise SystemExit(f"{folder}/{split}.json does not list the items of its shards in their order")
    if not np.array_equal(data["id"], icons["id"]):
        raise SystemExit(f"{folder}/{split}-icons.npz does not hold the items of the shards in their order")
    description = {
        "source": SOURCE,
        "changes": CHANGES,
        "licence": described["licence"],
        "frame": described["frame"],
        "points_per_item": POINTS,
        "split": split,
        "classes": described["classes"],
        "shards": [f"{split}-000.npz"],
        "items": [{key: item[key] for key in KEPT if key in item} for item in described["items"]],
    }
    return description, data, {"id": icons["id"], "icon": icons["icon"]}


def write_manifest(folder: Path) -> None:
    """Checksums of every file, in the format of ``sha256sum --check``."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".npz"))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / "manifest.sha256").write_text("".join(lines), encoding="utf-8")


def same_arrays(path: Path, wanted: dict[str, Any]) -> bool:
    with np.load(path, allow_pickle=False) as stored:
        return set(stored.files) == set(wanted) and all(np.array_equal(stored[k], v) for k, v in wanted.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    default = Path(__file__).parents[1] / "pc3d" / "data" / "household"
    parser.add_argument("--output", type=Path, default=default)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    out: Path = arguments.output
    if not arguments.check:
        out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        description, data, icons = build_split(arguments.folder, split)
        # One record per line: compact, and a change shows as one line in a diff.
        head = json.dumps({k: v for k, v in description.items() if k != "items"}, ensure_ascii=False)[:-1]
        records = ",\n".join(json.dumps(item, ensure_ascii=False) for item in description["items"])
        text = f'{head}, "items": [\n{records}\n]}}\n'
        if arguments.check:
            if (
                (out / f"{split}.json").read_text(encoding="utf-8") != text
                or not same_arrays(out / f"{split}-000.npz", data)
                or not same_arrays(out / f"{split}-icons.npz", icons)
            ):
                sys.exit(f"{out}: split {split} differs from what {arguments.folder} gives")
            continue
        (out / f"{split}.json").write_text(text, encoding="utf-8")
        np.savez_compressed(out / f"{split}-000.npz", **data)
        np.savez_compressed(out / f"{split}-icons.npz", **icons)
    if arguments.check:
        print(f"{out} is what {arguments.folder} gives")
        return
    write_manifest(out)
    total = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {total / 1e6:.2f} MB")
    if total > LIMIT_BYTES:
        sys.exit(f"more than the {LIMIT_BYTES / 1e6:.0f} MB that the package may carry")


if __name__ == "__main__":
    main()
