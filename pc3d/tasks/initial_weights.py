"""Load the weights of an exported encoder into a backbone, tensor by tensor where they fit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pc3d.models import AlignedShapeEncoder, BlockFeatures, DistilledEncoder, UpcastFeatures
from pc3d.models.described import describe
from pc3d.models.signal_layout import common_signals
from pc3d.tasks.weight_files import open_weights

_COUNTER = "num_batches_tracked"  # a number that fits whatever the network: no weight


@dataclass(frozen=True)
class InitialWeights:
    """What :func:`take_weights` did; all are names of tensors.

    Attributes:
        source: where the weights are from.
        taken: copied into the backbone.
        skipped: left out because ``skip`` names them.
        other_shape: left out because the backbone's has another shape.
        unknown: the backbone has no tensor of that name.
        fresh: of the backbone, left at their initial values.
        in_part: copied for the signals that both sides read; the rest keeps its initial values.
        built_with: the arguments that the encoder was built with and the backbone was not, in words. Some, such as the
            range of colours, change no shape and yet what the weights compute.
    """

    source: str
    taken: tuple[str, ...]
    skipped: tuple[str, ...]
    other_shape: tuple[str, ...]
    unknown: tuple[str, ...]
    fresh: tuple[str, ...]
    in_part: tuple[str, ...] = ()
    built_with: str = ""

    def __str__(self) -> str:
        def some(names: tuple[str, ...]) -> str:
            more = ", ..." if len(names) > 4 else ""
            return f" ({', '.join(names[:4])}{more})" if names else ""

        part = f"{len(self.in_part)} for the signals that both read{some(self.in_part)}, " if self.in_part else ""
        return (
            f"weights of {self.source}: {len(self.taken)} tensors taken, {part}{len(self.skipped)} skipped as asked, "
            f"{len(self.other_shape)} of another shape{some(self.other_shape)}, {len(self.unknown)} that this backbone "
            f"does not have{some(self.unknown)}; {len(self.fresh)} of the backbone left at their initial values"
            f"{some(self.fresh)}{f'; it was built with other arguments{self.built_with}' if self.built_with else ''}"
        )


@torch.no_grad()
def take_weights(
    backbone: nn.Module, encoder: str | os.PathLike[str], skip: Sequence[str] = (), *, y_up: bool = False
) -> InitialWeights:
    """Load the tensors of an exported encoder into a backbone if name and shape agree.

    The encoder may have other arguments or lack a decoder. The projection of a distilled encoder into the teacher's
    space, and the heads of an aligned encoder, are not loaded. For a backbone of :class:`UpcastFeatures`, the inner
    encoder is loaded; for :class:`BlockFeatures`, likewise from an encoder of objects. Swin3D is fine-tuned with
    ``skip=("upsamples",)`` and, on ScanNet, also without its stem (released code); the report lists the rest.

    If two voxel encoders read different signals (``xyz_rgb_normal`` and ``xyz_rgb``), the columns of the stem and the
    rows of Swin3D's attention tables of the common signals are loaded. For the tables this follows the released loader,
    which keeps one for each signal.

    Args:
        backbone: changed in place.
        encoder: folder or Hub id, as for :func:`pc3d.load_encoder`; or an official file, of Swin3D for a backbone of
            that class, of PTv3, Sonata or Concerto for a :class:`PointTransformerV3`, of the Point-MAE family for
            :class:`BlockFeatures` with a :class:`PointViT`, of POS-BERT for one with a :class:`ViT3D`.
        skip: leave out tensors whose name contains one of these.
        y_up: convert the weights of an official file of Swin3D that were trained with y up, as the authors' ``xyz_rgb``
            weights were (:func:`pc3d.models.load_official_swin3d`).

    Raises:
        ValueError: less than half of the smaller of the two (without what ``skip`` names) fits, an entry of ``skip``
            names nothing, or the source is an official file that is not for this backbone. The backbone is then
            unchanged.
    """
    target = _inside(backbone)
    opened, untold = open_weights(encoder, _of_objects(target), y_up=y_up)
    source = _inside(opened)
    if not isinstance(source, BlockFeatures):
        target = _of_objects(target)
    given = {name: value for name, value in source.state_dict().items() if name not in untold}
    own = target.state_dict()
    idle = [part for part in skip if not any(part in name for name in given)]
    if idle:
        raise ValueError(
            f"skip: no tensor of {encoder} has {idle[0]!r} in its name; there are {', '.join(given)[:400]}"
        )
    skipped = tuple(name for name in given if any(part in name for part in skip))
    rest = [name for name in given if name not in skipped]
    unknown = tuple(name for name in rest if name not in own)
    taken = tuple(name for name in rest if name in own and own[name].shape == given[name].shape)
    common = common_signals(source, target)
    in_part = tuple(name for name in rest if name in common and name not in taken)
    other_shape = tuple(name for name in rest if name in own and name not in {*taken, *in_part})

    there = _numbers(given[name] for name in rest if not name.endswith(_COUNTER))
    here = _numbers(value for name, value in own.items() if not any(part in name for part in (*skip, _COUNTER)))
    fitting = _numbers(given[name] for name in taken if not name.endswith(_COUNTER))
    fitting += sum(common[name].numbers for name in in_part)
    if 2 * fitting < min(there, here) or not fitting:
        raise ValueError(
            f"encoder: {100 * fitting / max(there, 1):.0f} % of the weights of {encoder} fit the backbone "
            f"{type(target).__name__} in name and shape, so training would start all but from scratch. Give "
            f"model.backbone the arguments that it was built with{difference(target, source)}. Or name with skip what "
            "is to stay fresh"
        )
    for name in taken:
        own[name].copy_(given[name])
    for name in in_part:
        common[name].copy(given[name], own[name])
    fresh = tuple(name for name in own if name not in {*taken, *in_part})
    built_with = difference(target, source)
    return InitialWeights(str(encoder), taken, skipped, other_shape, unknown, fresh, in_part, built_with)


def difference(ours: nn.Module, theirs: nn.Module) -> str:
    """Which arguments differ, where both sides say how they were built."""
    if type(ours) is not type(theirs):
        name = str(describe(theirs)["class"])
        return f": class_path {name if '.' in name else f'pc3d.models.{name}'}"
    here, there = getattr(ours, "config", {}), getattr(theirs, "config", {})
    names = [name for name in there if here.get(name) != there[name] and name != "num_cls_tokens"]
    return ": " + ", ".join(f"{name}={there[name]} (here {here.get(name)})" for name in names) if names else ""


def _inside(module: nn.Module) -> nn.Module:
    """The encoder whose tensors have names of their own, of what is built around it."""
    while isinstance(module, AlignedShapeEncoder | DistilledEncoder | UpcastFeatures):
        module = module.encoder
    return module


def _of_objects(module: nn.Module) -> nn.Module:
    """The encoder of objects in what applies it to scenes."""
    return module.encoder if isinstance(module, BlockFeatures) else module


def _numbers(tensors: Iterable[Tensor]) -> int:
    return sum(value.numel() for value in tensors)
