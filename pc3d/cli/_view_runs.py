"""What ``pc3d view`` shows of a run: predictions and their errors, or masked inputs and their reconstructions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc3d._configured import stored_objects
from pc3d._files import read_config
from pc3d.cli import _output
from pc3d.cli._inputs import NUM_POINTS
from pc3d.cli._view_inputs import Shown, items_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pc3d.data import PointDataset

VISIBLE, HIDDEN, PREDICTED = range(3)
MASK_NAMES = ("visible", "hidden", "predicted")


def kind_of(run: Path) -> str:
    """``"segment"``, ``"parts"``, ``"classify"`` or ``"pretrain"``.

    Raises:
        FileNotFoundError: the run has not got as far as to leave anything that could be looked at.
    """
    head = run / "head" / "config.json"
    if head.is_file():
        task = json.loads(head.read_text(encoding="utf-8")).get("task")
        return {"part segmentation": "parts", "classification": "classify"}.get(task, "segment")
    if not (run / "encoder" / "config.json").is_file() and not (run / "last.ckpt").is_file():
        raise FileNotFoundError(f"{run} has neither an encoder nor a checkpoint: let the run get further")
    return "pretrain"


def items_of_run(run: Path, items: Sequence[int] | None) -> tuple[list[Shown], list[str]]:
    """Items of the data of a run, of its test split where there is one, and what the user should know.

    Args:
        run: the run folder.
        items: which; the first one, or the first three where they are objects, when None.
    """
    dataset, split, notes = data_of(run)
    if items is None:
        items = range(min(1 if kind_of(run) == "segment" or hasattr(dataset, "rooms") else 3, len(dataset)))
    return items_of(dataset, f"the {split} split of {run}", items), notes


def data_of(run: Path) -> tuple[PointDataset, str, list[str]]:
    """The data of a run, of the test split where there is one, the name of the split, and what the user should know."""
    path = run / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: name what the run shall be shown on, as in household:test:12")
    data = read_config(path).get("data", {})
    section = data.get("test") or data.get("train")
    if not section:
        raise ValueError(f"{path} names no data: name what the run shall be shown on, as in household:test:12")
    section = _innermost(section)
    arguments = dict(section.get("init_args") or {})
    if data.get("test"):
        return _instantiated(section, path), str(arguments.get("split", "test")), []
    try:
        held_out = {**section, "init_args": {**arguments, "split": "test"}}
        return _instantiated(held_out, path), "test", []
    except Exception as error:  # whatever a class of the user's own says to a split that it does not have
        reason = " ".join(str(error).split()) or type(error).__name__
        note = f"these are items that the run was trained on; a test split of its data cannot be shown: {reason}"
        return _instantiated(section, path), "train", [note]


def _innermost(section: dict[str, Any]) -> dict[str, Any]:
    """The data set in a data set: features that were joined to shapes are of no use here, and need not be there."""
    inner = (section.get("init_args") or {}).get("dataset")
    return _innermost(inner) if isinstance(inner, dict) and "class_path" in inner else section


def _instantiated(section: dict[str, Any], path: Path) -> PointDataset:
    import jsonargparse

    from pc3d.data import PointDataset

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PointDataset, "data", required=True)
    dataset: PointDataset = stored_objects(parser, {"data": section}, path).data
    return dataset


def predictions(run: Path, shown: Sequence[Shown], device: str) -> tuple[list[NDArray[np.int64]], tuple[str, ...]]:
    """What each point is by a run of ``pc3d segment``, ``parts`` or ``classify``, and the names of classes or parts.

    All points of an object have the class that a classifier gives the object.
    """
    kind = kind_of(run)
    if kind == "classify":
        return _object_classes(run, shown, device)
    return (_scene_classes if kind == "segment" else _parts)(run, shown, device)


def truth(run: Path, one: Shown, names: tuple[str, ...]) -> NDArray[np.int64] | None:
    """What each point is by the labels; None where there are none, or others than the run's."""
    import numpy as np

    if kind_of(run) == "classify":
        known = one.cloud.label is not None and one.categories == names
        return np.full(len(one.cloud), one.cloud.label) if known else None
    known = one.cloud.segment is not None and tuple(one.classes) == names
    return one.cloud.segment.numpy() if known and one.cloud.segment is not None else None


def _object_classes(run: Path, shown: Sequence[Shown], device: str) -> tuple[list[NDArray[np.int64]], tuple[str, ...]]:
    """Objects are prepared as ``pc3d probe`` prepares them, for as many points as the encoder is meant for."""
    import numpy as np
    import torch

    from pc3d.models import points_meant_for
    from pc3d.tasks import load_classifier

    model, config = load_classifier(run)
    model, names = model.to(device), tuple(config["classes"])
    num_points = points_meant_for(model.encoder) or NUM_POINTS
    found = []
    for one in shown:
        with torch.no_grad():
            best = int(model(seen_points(one, num_points)[0][None].to(device)).argmax())
        _output.say(f"{one.name}: {names[best]}")
        found.append(np.full(len(one.cloud), best))
    return found, names


def _scene_classes(run: Path, shown: Sequence[Shown], device: str) -> tuple[list[NDArray[np.int64]], tuple[str, ...]]:
    from pc3d.tasks import load_segmenter, segment_scene, with_fields

    model = load_segmenter(run)
    found = []
    for one in shown:
        cloud, notes = with_fields(one.cloud, model.fields)
        for note in notes:
            _output.say(f"note: {one.name}: {note}")
        found.append(segment_scene(model, cloud, use_fragments=False, device=device, progress=True).label.numpy())
    return found, model.classes


def _parts(run: Path, shown: Sequence[Shown], device: str) -> tuple[list[NDArray[np.int64]], tuple[str, ...]]:
    import torch

    from pc3d.evaluation import predict_parts
    from pc3d.tasks import load_part_segmenter

    model, config = load_part_segmenter(run)
    model = model.to(device)
    num_points = int(model.encoder.config["num_points"])
    found = []
    for one in shown:
        category = one.cloud.label
        if category is None or not 0 <= category < len(config["categories"]):
            raise ValueError(
                f"{one.name} has no class, and parts are named of objects whose class is known: show items of a set "
                f"with the categories {', '.join(config['categories'][:5])}, ..."
            )
        xyz = one.cloud.xyz.to(device)
        view = xyz[torch.arange(num_points) * len(xyz) // num_points]
        kind = torch.tensor([category], device=device)
        with torch.no_grad():
            scores = model.segment(view[None], kind, xyz, torch.tensor([0, len(xyz)], device=device))
        found.append(predict_parts(scores, kind.expand(len(xyz)), config["category_parts"]).cpu().numpy())
    return found, tuple(config["parts"])


def reconstructs(run: Path) -> bool:
    """Whether a run is one of a method that reconstructs objects or scenes, with a checkpoint of what predicts."""
    from pc3d.methods import MaskedScene

    found = class_of(_model_of(run))
    masked = found is not None and (reconstructs_objects(found) or issubclass(found, MaskedScene))
    return masked and (run / "last.ckpt").is_file()


def reconstructs_objects(kind: type) -> bool:
    """Whether a method hides parts of objects and predicts them, as :class:`pc3d.methods.MaskedAutoencoder` does."""
    return callable(getattr(kind, "reconstruct", None))


def class_of(section: Mapping[str, Any]) -> type | None:
    """The class that a section of a configuration names, of pc3d or not; None where it cannot be imported."""
    from importlib import import_module

    module, _, name = str(section.get("class_path", "")).rpartition(".")
    try:
        found = getattr(import_module(module or "pc3d.methods"), name, None)
    except ImportError:
        return None
    return found if isinstance(found, type) else None


def masked_method(run: Path) -> Any:
    """The method of a run with its decoders, in evaluation mode."""
    import jsonargparse
    import torch

    from pc3d.methods import Method

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Method, "model", required=True)
    model = _model_of(run)
    optimisation = (model.get("init_args") or {}).get("optimisation")
    if isinstance(optimisation, dict):  # a picture needs no optimiser, whose class may not be here
        optimisation.pop("optimizer", None)
    method = stored_objects(parser, {"model": model}, run / "config.yaml").model
    method.load_state_dict(torch.load(run / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"])
    return method.eval()


def _model_of(run: Path) -> dict[str, Any]:
    """The section of the configuration that names the method; empty where there is none."""
    path = run / "config.yaml"
    model = read_config(path).get("model") if path.is_file() else None
    return model if isinstance(model, dict) else {}


def points_of(method: Any) -> int:
    """As many points of an object as the encoder of a method is meant for."""
    return int(getattr(method.encoder, "config", {}).get("num_points", 1024))


def reconstructions(method: Any, shown: Sequence[Shown], seed: int) -> list[list[tuple[str, Any, Any]]]:
    """Of each object three clouds: the input, what the encoder sees of it, and that with the hidden patches predicted.

    Returns:
        For each object the name, the points ``(., 3)`` and what each is (:data:`MASK_NAMES`) of the three.
    """
    import numpy as np
    import torch

    found = []
    for one in shown:
        xyz = seen_points(one, points_of(method))[0]
        with torch.no_grad():
            made = method.reconstruct(xyz[None], generator=torch.Generator().manual_seed(seed))
        mask = made.mask[0]
        # Patches overlap: each point is drawn once, and one that a visible patch has is seen.
        seen = torch.cdist(made.patches[0][~mask].reshape(-1, 3), xyz).argmin(1).unique().numpy()
        visible, predicted = xyz.numpy()[seen], made.predicted[0].reshape(-1, 3).numpy()
        kind_of_input = np.full(len(xyz), HIDDEN)
        kind_of_input[seen] = VISIBLE
        rebuilt = np.concatenate([visible, predicted])
        kinds = np.where(np.arange(len(rebuilt)) < len(visible), VISIBLE, PREDICTED)
        found.append(
            [
                (one.name, xyz.numpy(), kind_of_input),
                ("what the encoder sees", visible, np.full(len(visible), VISIBLE)),
                ("reconstruction", rebuilt, kinds),
            ]
        )
    return found


def seen_scene(encoder: Any, one: Shown, notes: list[str]) -> Any:
    """A scene as networks of scenes are given it: with all fields that are read, standing on the ground."""
    import torch

    from pc3d.data import CenterShift
    from pc3d.tasks import with_fields

    fields = str(getattr(encoder, "signals", "xyz")).split("_")
    cloud, made_up = with_fields(one.cloud, tuple(name for name in ("rgb", "normal") if name in fields))
    notes += [f"{one.name}: {note}" for note in made_up]
    return CenterShift()(cloud, torch.Generator())


def seen_points(one: Shown, num_points: int) -> tuple[Any, Any, Any]:
    """What an encoder of objects sees of a cloud, that cloud's points in the same frame, and colours of the former.

    Returns:
        ``(num_points, 3)``, ``(N, 3)`` and ``(num_points, 3)`` or None.
    """
    import torch

    from pc3d.evaluation.features import preparation

    cloud = one.cloud.replace(xyz=one.cloud.xyz.float())
    generator = torch.Generator().manual_seed(0)
    taken = preparation(min(num_points, len(cloud)), one.sampling, "none")(cloud, generator)
    seen = preparation(None, one.sampling, one.normalize)(taken, generator).xyz
    # The frame is one scale and one shift of what was taken.
    spread = float((taken.xyz - taken.xyz.mean(0)).norm())
    scale = float((seen - seen.mean(0)).norm()) / spread if spread > 0 else 1.0
    frame = (cloud.xyz - taken.xyz.mean(0)) * scale + seen.mean(0)
    return seen, frame, taken.rgb
