"""``pc3d segment openvocab``: make a segmentation model from a distilled encoder and the names of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pc3d._files import check_writable
from pc3d.cli import _output
from pc3d.cli._parser import run_verb


def openvocab(
    run: str,
    classes: str,
    output: str,
    templates: str = "photo",
    teacher: str | None = None,
    weights: str | None = None,
    overwrite: bool = False,
) -> None:
    """Make a segmentation model whose classes are texts, without labels, from a distilled encoder.

    The run must use the method DenseDistillation with a teacher that shares a space with texts, such as CLIP. The model
    is like one of pc3d segment train: pc3d segment predict labels the points of any scene with these classes, and pc3d
    segment eval --data ... scores them if the data set has classes of the same names in the same order.

    Args:
        run: Run folder of pc3d pretrain, or the encoder in it; --run itself may be left out.
        classes: Comma-separated names, or a file with one per line, optionally followed by a tab and a prompt (several
            lines with one name give it several prompts).
        output: Folder for the model.
        templates: Prompt templates for the names: 'photo', 'ulip' (64), 'none', or a file with one per line.
        teacher: Pair of towers, if the encoder does not name its own, such as 'open_clip:ViT-B-16/laion2b_s34b_b88k'.
        weights: Local file of weights for open_clip.
        overwrite: Replace a model in the output folder.
    """
    from pc3d.cli._alignment import class_vectors, read_classes, templates_of, warn_of_other_tower
    from pc3d.models import DistilledEncoder, load_encoder
    from pc3d.tasks import joint_teacher, open_vocabulary_segmenter

    folder = Path(output)
    check_writable(folder, "output")
    if (folder / "encoder").exists() and not overwrite:
        raise FileExistsError(f"{folder} holds a model: add --overwrite to replace it, or choose another --output")
    distilled = load_encoder(run, expect=DistilledEncoder)
    prompts, patterns = read_classes(classes), templates_of(templates)
    pair = joint_teacher(distilled, teacher, weights)
    warn_of_other_tower("teacher", teacher or distilled.space, distilled.space)
    vectors = class_vectors(pair.text, list(prompts.values()), patterns)
    model = open_vocabulary_segmenter(distilled, list(prompts), vectors, pair.logit_scale)
    model.save(folder)
    kind = " (a bridge, not CLIP)" if pair.kind == "bridge" else ""
    data = {"model": str(folder), "classes": list(prompts), "text_tower": pair.text.name, "kind": pair.kind}
    _output.result(data, f"model written to {folder}: {len(prompts)} classes by {pair.text.name}{kind}")
    _output.say(f"name the points of scenes with: pc3d segment predict {folder} SCENE... --output FOLDER")


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    return run_verb("segment openvocab", openvocab, argv, words=["run"])
