"""Build the set of rooms that ships inside the package from the large form.

    python data_tools/build_rooms.py FOLDER [--output pc3d/data/rooms] [--check]

FOLDER holds ``train.json``, ``test.json`` and a ``NAME.npz`` per room. The rooms of ``ROOMS`` stay, with every point
and every value as it is, but without their pictures. Creator and licence of every piece of furniture are looked up in
the household set of the package. Arrays are packed with LZMA, a quarter smaller than ``np.savez_compressed``; NumPy
reads both alike. The output is the same, byte for byte, for the same input and liblzma.

``--check`` compares the content of what is there with what would be built, and writes nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from build_household import same_arrays, write_manifest

LIMIT_BYTES = 5_500_000
# Two bedrooms, two living rooms, a kitchen, two offices and a bathroom to learn from (every class but vehicle); a
# living room, a kitchen and a bedroom to test on. Garages are four times as large as what they would add.
ROOMS = {
    "train": ("000", "001", "003", "006", "010", "014", "019", "022"),
    "test": ("001", "002", "006"),
}
KEYS = ("coord_mm", "origin", "color", "normal", "segment", "instance")
SOURCE = "rooms composed of the household models of the same split and scanned by simulated depth cameras"
CHANGES = "models arranged into rooms and lit; depth with noise of 20 views merged, one point per 3.5 cm cell"
PACKAGE_DATA = Path(__file__).parents[1] / "pc3d" / "data"


def household_records() -> dict[str, dict[str, Any]]:
    records: dict[str, dict[str, Any]] = {}
    for split in ("train", "test"):
        described = json.loads((PACKAGE_DATA / "household" / f"{split}.json").read_text(encoding="utf-8"))
        records.update({item["id"]: item for item in described["items"]})
    return records


def build_split(folder: Path, split: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """The text of ``SPLIT.json`` and the arrays of each room."""
    described = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
    records = household_records()
    names = [f"{split}_{number}" for number in ROOMS[split]]
    rooms = [room for room in described["rooms"] if room["name"] in names]
    arrays = {}
    for room in rooms:
        for thing in room["objects"]:
            thing.update({key: records[thing["item"]][key] for key in ("creator", "licence")})
        del room["frames"]
        with np.load(folder / f"{room['name']}.npz", allow_pickle=False) as stored:
            arrays[room["name"]] = {key: stored[key] for key in KEYS}
    head = {
        "source": SOURCE,
        "changes": CHANGES,
        "licence": "CC-BY 3.0 / CC-BY 3.0 US / CC0, per object (see licence, creator)",
        "frame": "right-handed, z up, metres",
        "split": split,
        "classes": described["classes"],
    }
    # One record per line: compact, and a change shows as one line in a diff.
    lines = ",\n".join(json.dumps(room, ensure_ascii=False) for room in rooms)
    return f'{json.dumps(head, ensure_ascii=False)[:-1]}, "rooms": [\n{lines}\n]}}\n', arrays


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for key, values in arrays.items():
            file = io.BytesIO()
            np.lib.format.write_array(file, values, allow_pickle=False)
            # A ZipInfo of its own carries a fixed date, so that the same arrays give the same file.
            entry = zipfile.ZipInfo(f"{key}.npy")
            entry.compress_type = zipfile.ZIP_LZMA
            archive.writestr(entry, file.getvalue())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=PACKAGE_DATA / "rooms")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    out: Path = given.output
    if not given.check:
        out.mkdir(parents=True, exist_ok=True)
    for split in ROOMS:
        text, rooms = build_split(given.folder, split)
        if given.check:
            same = (out / f"{split}.json").read_text(encoding="utf-8") == text
            if not same or not all(same_arrays(out / f"{name}.npz", arrays) for name, arrays in rooms.items()):
                sys.exit(f"{out}: split {split} differs from what {given.folder} gives")
            continue
        (out / f"{split}.json").write_text(text, encoding="utf-8")
        for name, arrays in rooms.items():
            write_arrays(out / f"{name}.npz", arrays)
    if given.check:
        print(f"{out} is what {given.folder} gives")
        return
    write_manifest(out)
    total = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {total / 1e6:.2f} MB")
    if total > LIMIT_BYTES:
        sys.exit(f"more than the {LIMIT_BYTES / 1e6:.1f} MB that the package may carry")


if __name__ == "__main__":
    main()
