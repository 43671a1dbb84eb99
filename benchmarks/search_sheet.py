"""Ten searches among the embedded test objects with their first five answers, in one picture.

    python benchmarks/search_sheet.py RUN --output docs/images/search_sheet.png

RUN is a run of ``openshape_household``, or any encoder aligned with texts and pictures. The queries were chosen before
any answer was seen: five texts, none of them a name of the set; the preview pictures of three test objects; two
training objects, which are not among those searched. The rest is ``pc3d index build`` and ``pc3d search``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from pc3d.cli.main import main as pc3d
from pc3d.data import Household

TEXTS = (
    "a wooden chair to sit on",
    "a lamp that hangs from the ceiling",
    "something to sleep in",
    "a plant in a pot",
    "a car to drive",
)
PICTURES = (10, 60, 110)
SHAPES = (100, 300)
COLORS = 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of an aligned encoder")
    parser.add_argument("--output", type=Path, required=True, help="PNG file")
    given = parser.parse_args()
    test, train = Household("test", pictures=True), Household("train")
    with tempfile.TemporaryDirectory() as folder:
        queries = list(TEXTS)
        for number in PICTURES:
            image = test.load(number).image
            assert image is not None
            queries.append(str(Path(folder) / f"picture_{number}.png"))
            Image.fromarray(image.numpy()).save(queries[-1])
        for number in SHAPES:
            cloud = train.load(number)
            assert cloud.rgb is not None
            queries.append(str(Path(folder) / f"shape_{number}.npz"))
            np.savez(queries[-1], coord=cloud.xyz.numpy(), color=(255 * cloud.rgb).round().byte().numpy())
        index = str(Path(folder) / "index")
        steps = (
            ["index", "build", "--encoder", given.run, "--output", index, "--num_points", "1024"],
            [
                "search",
                *queries,
                "--index",
                index,
                "--each",
                "--top",
                "5",
                "--picture",
                str(given.output),
                "--overwrite",
            ],
        )
        for step in steps:
            if (code := pc3d(step)) != 0:
                raise SystemExit(code)
    # Few colours are enough for such small pictures, and a third of the bytes.
    Image.open(given.output).convert("RGB").quantize(COLORS).save(given.output, optimize=True)


if __name__ == "__main__":
    main()
