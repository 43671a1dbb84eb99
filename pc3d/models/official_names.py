"""The names and shapes that the official Point-MAE family gives to our parameters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pc3d.models.classifier import PointClassifier
from pc3d.models.masked_autoencoder import MaskedPointModel
from pc3d.models.part_segmentation import PointPartSegmenter
from pc3d.models.point_vit import PointViT

# (our module, their module), and whether theirs is a 1x1 convolution where ours is a linear layer.
_Pair = tuple[str, str, bool]


@dataclass(frozen=True)
class Slot:
    """Where an official tensor lives in one of our networks.

    Attributes:
        name: our parameter or buffer.
        shape: of the official tensor.
        row: the row of ours that it is, or None for all of it.
    """

    name: str
    shape: tuple[int, ...]
    row: int | None = None


def official_slots(model: nn.Module) -> dict[str, Slot]:
    """Official names of everything in a network, each with the place of ours that holds it.

    Args:
        model: a :class:`MaskedPointModel` with one or two branches, :class:`PointClassifier` or
            :class:`PointPartSegmenter` of a :class:`PointViT`.

    Raises:
        TypeError: another network, or one with more than two branches.
    """
    if isinstance(model, PointClassifier):
        heads = ((f"head.{i}", f"cls_head_finetune.{i}", False) for i in range(len(model.head)))
        slots = _expand(model, [*_encoder(model.encoder, "encoder.", ""), *heads])
        return slots | _tokens(model.encoder, "encoder.", "", [""])
    if isinstance(model, PointPartSegmenter) and isinstance(model.encoder, PointViT):
        return _expand(model, [*_encoder(model.encoder, "encoder.", ""), *_PART_HEAD])
    if isinstance(model, MaskedPointModel) and len(model.decoders) <= 2:
        return _masked_slots(model)
    raise TypeError(f"the official code has no counterpart of this {type(model).__name__}")


def encoder_slots(encoder: PointViT, prefix: str, token_suffixes: list[str]) -> dict[str, Slot]:
    """As :func:`official_slots`, for an encoder alone, within a file whose encoder tensors start with ``prefix``."""
    return _expand(encoder, _encoder(encoder, "", prefix)) | _tokens(encoder, "", prefix, token_suffixes)


def projector_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """The projector in Point-CMAE's checkpoints whose output the released code discards; nothing of ours."""
    shapes: dict[str, tuple[int, ...]] = {
        "0.weight": (256, width),
        "0.bias": (256,),
        "1.num_batches_tracked": (),
        "3.weight": (256, 256),
        "3.bias": (256,),
    }
    shapes |= {f"1.{name}": (256,) for name in ("weight", "bias", "running_mean", "running_var")}
    return {f"MAE_encoder.proj_cls.{name}": shape for name, shape in shapes.items()}


_PART_HEAD: list[_Pair] = [
    ("category.0", "label_conv.0", True),
    ("category.1", "label_conv.1", False),
    ("propagation.0", "propagation_0.mlp_convs.0", True),
    ("propagation.1", "propagation_0.mlp_bns.0", False),
    ("propagation.3", "propagation_0.mlp_convs.1", True),
    ("propagation.4", "propagation_0.mlp_bns.1", False),
    ("head.0", "convs1", True),
    ("head.1", "bns1", False),
    ("head.4", "convs2", True),
    ("head.5", "bns2", False),
    ("head.7", "convs3", True),
]


def _blocks(count: int, ours: str, theirs: str) -> list[_Pair]:
    layers = {"norm1": "norm1", "norm2": "norm2", "attention.qkv": "attn.qkv", "attention.projection": "attn.proj"}
    layers |= {"mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"}
    return [(f"{ours}.{i}.{a}", f"{theirs}.{i}.{b}", False) for i in range(count) for a, b in layers.items()]


def _encoder(encoder: PointViT, ours: str, theirs: str) -> list[_Pair]:
    return [
        (f"{ours}tokenizer.network.first.0", f"{theirs}encoder.first_conv.0", True),
        (f"{ours}tokenizer.network.first.1", f"{theirs}encoder.first_conv.1", False),
        (f"{ours}tokenizer.network.first.3", f"{theirs}encoder.first_conv.3", True),
        (f"{ours}tokenizer.network.mix", f"{theirs}encoder.second_conv.0", True),
        (f"{ours}tokenizer.network.second.0", f"{theirs}encoder.second_conv.1", False),
        (f"{ours}tokenizer.network.second.2", f"{theirs}encoder.second_conv.3", True),
        (f"{ours}position.0", f"{theirs}pos_embed.0", False),
        (f"{ours}position.2", f"{theirs}pos_embed.2", False),
        *_blocks(len(encoder.transformer.blocks), f"{ours}transformer.blocks", f"{theirs}blocks.blocks"),
        (f"{ours}norm", f"{theirs}norm", False),
    ]


def _masked_slots(model: MaskedPointModel) -> dict[str, Slot]:
    branches = len(model.decoders)
    width = model.encoder.embed_dim
    pairs = _encoder(model.encoder, "encoder.", "MAE_encoder.")
    slots = _tokens(model.encoder, "encoder.", "MAE_encoder.", ["1", "2"])
    for index, decoder in enumerate(model.branch_decoders()):
        ours = f"decoders.{index}"
        number, underscore = ("", "") if branches == 1 else (str(index + 1), "_" * index)
        pairs += [
            (f"{ours}.position.0", f"decoder_pos_embed{number}.0", False),
            (f"{ours}.position.2", f"decoder_pos_embed{number}.2", False),
            *_blocks(len(decoder.transformer.blocks), f"{ours}.transformer.blocks", f"MAE_decoder{underscore}.blocks"),
            (f"{ours}.norm", f"MAE_decoder{underscore}.norm", False),
            (f"{ours}.head", f"increase_dim{underscore}.0", True),
        ]
        slots[f"mask_token{number}"] = Slot(f"{ours}.mask_token", (1, 1, width))
    return _expand(model, pairs) | slots


def _tokens(encoder: PointViT, ours: str, theirs: str, suffixes: list[str]) -> dict[str, Slot]:
    if encoder.cls_token is None:
        return {}
    shape = (1, 1, encoder.embed_dim)
    rows = range(encoder.cls_token.shape[0])  # of which there may be fewer than a file has tokens, or more
    return {
        f"{theirs}{official}{suffix}": Slot(f"{ours}{name}", shape, row)
        for name, official in (("cls_token", "cls_token"), ("cls_position", "cls_pos"))
        for row, suffix in zip(rows, suffixes, strict=False)
    }


def _expand(model: nn.Module, pairs: list[_Pair]) -> dict[str, Slot]:
    state = model.state_dict()
    modules: dict[str, list[str]] = {}
    for name in state:
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, []).append(leaf)
    slots = {}
    for ours, theirs, is_convolution in pairs:
        for leaf in modules.get(ours, []):
            shape = tuple(state[f"{ours}.{leaf}"].shape)
            # A 1x1 convolution's weight is a linear layer's with one more axis.
            official = (*shape, 1) if is_convolution and leaf == "weight" else shape
            slots[f"{theirs}.{leaf}"] = Slot(f"{ours}.{leaf}", official)
    return slots
