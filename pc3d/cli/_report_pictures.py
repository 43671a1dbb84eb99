"""What ``pc3d report`` draws with the trained networks of a run: reconstructions and segmentations."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pc3d.cli._inputs import LeftOut, OnError, Source, open_split
from pc3d.cli._report_run import NotApplicableError, Run, is_of_scenes, spread, training_set
from pc3d.cli._view_runs import class_of, points_of, reconstructs_objects

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pc3d.data import PointCloud
    from pc3d.evaluation import Kept
    from pc3d.tasks import SceneSegmenter
    from pc3d.viz.report import Image, Section


@dataclass(frozen=True)
class Objects:
    """Objects that a section is made of.

    Attributes:
        data: as ``--data`` of the judging verbs.
        split: of it.
        variant: of it.
        source: the split, and how its clouds are prepared.
        on_error: what to do with files that cannot be used, see :class:`pc3d.cli._inputs.LeftOut`.
        unusable: those that were left out so far, and why.
    """

    data: str
    split: str
    variant: Any
    source: Source
    on_error: OnError
    unusable: dict[str, str]

    def leave_out(self, files: Iterable[Mapping[str, str]]) -> None:
        """Note that files are left out."""
        self.unusable.update((file["path"], file["reason"]) for file in files)

    @property
    def in_words(self) -> str:
        return f"{self.data}{f' ({self.variant})' if self.variant else ''}, {self.split} split"


def objects_of(run: Run, data: str, split: str, on_error: OnError, unusable: dict[str, str]) -> Objects:
    """The objects to show: of the run's own data set (``"run"``), or of another.

    Raises:
        NotApplicableError: the run is of scenes, or its data set is none that the judging verbs read.
        FileNotFoundError: the data set is not there.
    """
    if is_of_scenes(run):
        raise NotApplicableError("an encoder of scenes has no single vector for a cloud")
    variant = None
    if data == "run":
        data, variant = _named(run)
    source = open_split(data, split, None, variant, on_error)
    return Objects(data, split, variant, source, on_error, unusable)


def _named(run: Run) -> tuple[str, Any]:
    options = training_set(run).get("init_args") or {}
    path = str(training_set(run).get("class_path", ""))
    name = path.rpartition(".")[2]
    if not path:
        data = (run.config.get("data") or {}).get("class_path", "the configuration")
        raise NotApplicableError(f"{data} names no data set to show objects of: name one with --data")
    if not path.startswith("pc3d."):  # its folder, if it has one, need not be such as open_split reads
        raise NotApplicableError(f"{path}, the data set of the run, is none of pc3d's: name other objects with --data")
    if name == "Household" and not options.get("root"):
        return "household", None
    if not options.get("root"):
        raise NotApplicableError(f"the configuration names no folder of its {name}: give one with --data")
    return str(options["root"]), options.get("variant")


def reconstructions(run: Run, choose: Callable[[], Objects], count: int, seed: int) -> Section:
    """Some objects or scenes under a mask, and what a masked autoencoder makes of them.

    Raises:
        NotApplicableError: the run is of another kind, or has no checkpoint.
    """
    import torch

    from pc3d.cli._report_scenes import masked_scenes
    from pc3d.cli.pretrain import load_method
    from pc3d.data import BadFileError
    from pc3d.demo import reconstruction_rows
    from pc3d.evaluation.features import preparation
    from pc3d.methods import MaskedScene
    from pc3d.viz import reconstruction_figure
    from pc3d.viz.report import Section

    kind = class_of(run.config["model"])
    of_scenes = kind is not None and issubclass(kind, MaskedScene)
    if kind is None or not (of_scenes or reconstructs_objects(kind)):
        raise NotApplicableError("the method is no masked autoencoder: it reconstructs nothing")
    if not run.folder.checkpoint.is_file():
        raise NotApplicableError(f"there is no {run.folder.checkpoint.name}, which holds the decoder")
    if of_scenes:
        return Section("Reconstructions", list(masked_scenes(run, count, seed)))
    objects, method = choose(), load_method(run.folder).eval()
    chosen = spread(len(objects.source.dataset), count)
    # All that is stored is drawn; the encoder takes the first points, or farthest ones in their order.
    num_points = None if objects.source.sampling == "first" else points_of(method)
    prepare = preparation(num_points, objects.source.sampling, objects.source.normalize)
    left_out = LeftOut(objects.data, objects.source.dataset, objects.on_error)
    clouds = []
    for index in chosen:
        try:
            clouds.append(prepare(objects.source.dataset.load(index), torch.Generator()))
        except BadFileError as error:
            left_out(index, error)
    objects.leave_out(left_out.files)
    if not clouds:
        raise NotApplicableError(f"none of the {len(chosen)} objects to draw can be read")
    rows = reconstruction_rows(method, clouds, seed=seed)
    ratio = getattr(method, "mask_ratio", None)
    hidden = "" if ratio is None else f"{100 * ratio:.0f} % of the patches hidden, "
    picture = _image(reconstruction_figure(rows), f"{objects.in_words}; {hidden}masks by seed {seed}")
    return Section("Reconstructions", [picture])


def segmentations(run: Run, count: int, kept: Kept, device: str) -> Section:
    """Scenes, or objects with parts, as labelled and as the model sees them.

    Raises:
        NotApplicableError: the run is of another kind, or has no test set.
    """
    from pc3d.viz.report import Section

    if run.kind not in ("segment", "parts"):
        raise NotApplicableError("the run segments nothing")
    if not (run.config.get("data") or {}).get("test"):
        raise NotApplicableError("the configuration names no data.test")
    folder = run.need_encoder()
    scenes = run.kind == "segment"
    pictures = _scenes(folder, min(count, 3), kept, device) if scenes else [_parts(folder, count, device)]
    return Section("Segmentation of held-out data", list(pictures))


def _scenes(folder: Path, count: int, kept: Kept, device: str) -> Iterable[Image]:
    from pc3d.cli._segment_eval import dataset_of_run
    from pc3d.evaluation.kept import identity_of
    from pc3d.tasks import load_segmenter
    from pc3d.tasks.scene_inference import seen_by
    from pc3d.viz import scene_figure

    dataset, name = dataset_of_run(folder)
    model = load_segmenter(folder)
    made_by = identity_of(model)
    for index in spread(len(dataset), count):
        cloud = dataset.load(index)
        predicted = kept.of([made_by, device, *seen_by(model, cloud)], partial(_named_by, model, cloud, device))
        label = None if cloud.segment is None else cloud.segment.numpy()
        rgb = None if cloud.rgb is None else cloud.rgb.numpy()
        figure = scene_figure(cloud.xyz.numpy(), predicted, model.classes, rgb=rgb, label=label)
        yield _image(figure, f"{name}: {cloud.meta.get('id', index)}, {len(cloud):,} points")


def _named_by(model: SceneSegmenter, cloud: PointCloud, device: str) -> NDArray[Any]:
    from pc3d.tasks.scene_inference import segment_scene

    label: NDArray[Any] = segment_scene(model, cloud, device=device).label.numpy()
    return label


def _parts(folder: Path, count: int, device: str) -> Image:
    import torch

    from pc3d.cli._objects import stored_data
    from pc3d.evaluation import predict_parts
    from pc3d.tasks import load_part_segmenter
    from pc3d.viz.objects import PartsColumn, parts_figure

    model, config = load_part_segmenter(folder)
    model = model.to(device)
    data = stored_data(folder, "parts")
    num_points, columns = int(model.encoder.config["num_points"]), []
    for index in spread(len(data.dataset), count):
        cloud = data.prepare(data.dataset.load(index), torch.Generator())
        if cloud.segment is None or cloud.label is None:
            raise NotApplicableError(f"{data.name} has no parts of points")
        rows = torch.arange(num_points) * len(cloud) // num_points
        xyz, category = cloud.xyz.to(device), torch.tensor([cloud.label], device=device)
        with torch.no_grad():
            scores = model.segment(xyz[rows][None], category, xyz, torch.tensor([0, len(cloud)], device=device))
        predicted = predict_parts(scores, category.expand(len(cloud)), config["category_parts"]).cpu()
        title = config["categories"][cloud.label]
        columns.append(PartsColumn(title, cloud.xyz.numpy(), predicted.numpy(), cloud.segment.numpy()))
    return _image(parts_figure(columns, config["parts"]), f"{data.name}, {data.split} split")


def _image(figure: Any, caption: str) -> Image:
    from pc3d.viz.report import Image

    data = io.BytesIO()
    figure.savefig(data, format="jpeg", dpi=100, pil_kwargs={"quality": 85})
    return Image(data.getvalue(), "image/jpeg", caption)
