"""``pc3d export``: a trained model as a program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pc3d._files import check_writable
from pc3d.cli import _output
from pc3d.cli._parser import run_verb

if TYPE_CHECKING:
    from pc3d.data import Transform

# Steps of a run's own preparation that the program does (Normalize, CenterShift), or that only choose points or fields.
_KNOWN = ("CenterShift", "FarthestPointSample", "FirstPoints", "KeepFields", "Normalize", "RandomSubsample")


def export(model: str, output: str, compiled: bool = False, overwrite: bool = False) -> None:
    """Write a trained model as a program of PyTorch: features of an encoder, logits of a classifier or segmenter.

    The program takes points as they are in files and prepares them as the commands of pc3d do. The folder OUTPUT
    receives model.pt2 and model.json, which says what the program takes and returns. Load it in Python with
    torch.export.load("model.pt2").module(), after import pc3d.ops.

    Args:
        model: Run folder of pretrain, classify, parts or segment, or folder or Hub id of an exported encoder;
            --model itself may be left out.
        output: Folder to write.
        compiled: Compile the program for this machine's processor, with a C++ compiler, in minutes. It then runs in C++
            without Python; OUTPUT also receives pc3d_operators.h and libpc3d_operators.so. Load it in Python with
            torch._inductor.aoti_load_package("model.pt2").
        overwrite: Replace what an earlier call wrote there.
    """
    from pc3d.tasks import export_program, save_program

    folder = Path(output)
    check_writable(folder, "output")
    taken = folder / "model.pt2"
    if taken.exists() and not overwrite:
        raise FileExistsError(f"output: {taken} exists: choose another folder, or add --overwrite to replace it")
    own_steps = _own_steps(Path(model))
    program = export_program(model)
    if compiled:
        _output.say("compiling, which takes minutes")
    path = save_program(program, folder, compiled=compiled)
    notes = _left_to_the_caller(own_steps)
    lines = [str(path), *(f"  takes {name}: {what}" for name, what in program.inputs.items())]
    lines += [f"  returns {program.output}", *(f"  {note}" for note in notes)]
    told = {"file": str(path), "inputs": program.inputs, "output": program.output, "classes": list(program.classes)}
    _output.result({**told, "notes": notes}, "\n".join(lines))


def _own_steps(run: Path) -> Sequence[Transform]:
    """What a run does to the data that it is tested on."""
    from pc3d.tasks.trained_objects import stored_preparation

    if not (run / "config.yaml").is_file() or not (run / "head").is_dir():
        return []
    return stored_preparation(run).transforms


def _left_to_the_caller(steps: Sequence[Transform]) -> list[str]:
    """Those of the steps that the program does not do."""
    others = [name for name in (type(step).__name__ for step in steps) if name not in _KNOWN]
    return (
        [f"the run also prepares its test data by {', '.join(others)}, which is left to the caller"] if others else []
    )


def main(argv: Sequence[str]) -> int | None:
    """Run the verb."""
    return run_verb("export", export, argv, words=["model"])
