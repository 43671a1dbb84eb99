"""Convert an official OpenShape checkpoint into an encoder's folder, as zeroshot, index, search and start_from take it.

    python data_tools/convert_openshape_checkpoint.py model.pt runs/official [--tower LIBRARY:MODEL]

Reads the released files of the transformer and of the sparse convolutions (by weights alone: a file runs no code). The
folder keeps the learned logit scale and the name of the pair of towers: of the released models it follows from the
width of the embeddings, 1280 for ViT-bigG-14, 768 for ViT-L-14, 512 for ViT-B-32.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pc3d.models import load_aligned_openshape, save_encoder


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="the official file")
    parser.add_argument("out", type=Path, help="folder to write to; an encoder in it is replaced")
    parser.add_argument("--tower", help="pair of towers it was aligned with, '' if not known (default: by the width)")
    for name, kind in (("num_groups", int), ("radius", float), ("group_size", int), ("voxel_size", float)):
        parser.add_argument(f"--{name}", type=kind, help="of the encoder, where it is of no released size")
    given = parser.parse_args(arguments)
    changes = {name: getattr(given, name) for name in ("num_groups", "radius", "group_size", "voxel_size")}
    try:
        encoder, report = load_aligned_openshape(
            given.checkpoint, tower=given.tower, **{name: value for name, value in changes.items() if value is not None}
        )
        save_encoder(encoder, given.out)
    except (OSError, ValueError, TypeError) as error:
        sys.exit(str(error))
    print(f"{report}\n{given.out}: {type(encoder.encoder).__name__} in the space of {encoder.text_space or '?'}")


if __name__ == "__main__":
    main()
