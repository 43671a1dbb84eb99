"""The tensors of the official checkpoints, written down from their description rather than from our converter."""

from __future__ import annotations

Layout = dict[str, tuple[int, ...]]


def _bn(prefix: str, n: int) -> Layout:
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{prefix}.{name}": (n,) for name in names} | {f"{prefix}.num_batches_tracked": ()}


def _linear(prefix: str, out: int, *inputs: int, bias: bool = True) -> Layout:
    return {f"{prefix}.weight": (out, *inputs)} | ({f"{prefix}.bias": (out,)} if bias else {})


def _norm(prefix: str) -> Layout:
    return {f"{prefix}.weight": (384,), f"{prefix}.bias": (384,)}


def _tokenizer(prefix: str) -> Layout:
    return (
        _linear(f"{prefix}.first_conv.0", 128, 3, 1)
        | _bn(f"{prefix}.first_conv.1", 128)
        | _linear(f"{prefix}.first_conv.3", 256, 128, 1)
        | _linear(f"{prefix}.second_conv.0", 512, 512, 1)
        | _bn(f"{prefix}.second_conv.1", 512)
        | _linear(f"{prefix}.second_conv.3", 384, 512, 1)
    )


def _position(prefix: str) -> Layout:
    return _linear(f"{prefix}.0", 128, 3) | _linear(f"{prefix}.2", 384, 128)


def _blocks(prefix: str, depth: int) -> Layout:
    layout: Layout = {}
    for i in range(depth):
        block = f"{prefix}.{i}"
        layout |= _norm(f"{block}.norm1") | _norm(f"{block}.norm2")
        layout |= _linear(f"{block}.attn.qkv", 1152, 384, bias=False) | _linear(f"{block}.attn.proj", 384, 384)
        layout |= _linear(f"{block}.mlp.fc1", 1536, 384) | _linear(f"{block}.mlp.fc2", 384, 1536)
    return layout


def _encoder(prefix: str) -> Layout:
    return (
        _tokenizer(f"{prefix}encoder")
        | _position(f"{prefix}pos_embed")
        | _blocks(f"{prefix}blocks.blocks", 12)
        | _norm(f"{prefix}norm")
    )


def _decoder(number: str, underscore: str) -> Layout:
    return (
        {f"mask_token{number}": (1, 1, 384)}
        | _position(f"decoder_pos_embed{number}")
        | _blocks(f"MAE_decoder{underscore}.blocks", 4)
        | _norm(f"MAE_decoder{underscore}.norm")
        | _linear(f"increase_dim{underscore}.0", 96, 384, 1)
    )


def point_mae() -> Layout:
    return _encoder("MAE_encoder.") | _decoder("", "")


def projector() -> Layout:
    prefix = "MAE_encoder.proj_cls"
    return _linear(f"{prefix}.0", 256, 384) | _bn(f"{prefix}.1", 256) | _linear(f"{prefix}.3", 256, 256)


def point_cmae() -> Layout:
    tokens = {f"MAE_encoder.{name}{k}": (1, 1, 384) for name in ("cls_token", "cls_pos") for k in (1, 2)}
    return _encoder("MAE_encoder.") | tokens | projector() | _decoder("1", "") | _decoder("2", "_")


def classifier(num_classes: int, linear: bool = False) -> Layout:
    head = "cls_head_finetune"
    layout = {"cls_token": (1, 1, 384), "cls_pos": (1, 1, 384)} | _encoder("")
    if linear:
        return layout | _linear(f"{head}.0", num_classes, 768)
    layout |= _linear(f"{head}.0", 256, 768) | _bn(f"{head}.1", 256)
    layout |= _linear(f"{head}.4", 256, 256) | _bn(f"{head}.5", 256)
    return layout | _linear(f"{head}.8", num_classes, 256)


def part_segmentation() -> Layout:
    return (
        _encoder("")
        | _linear("label_conv.0", 64, 16, 1, bias=False)
        | _bn("label_conv.1", 64)
        | _linear("propagation_0.mlp_convs.0", 1536, 1155, 1)
        | _linear("propagation_0.mlp_convs.1", 1024, 1536, 1)
        | _bn("propagation_0.mlp_bns.0", 1536)
        | _bn("propagation_0.mlp_bns.1", 1024)
        | _linear("convs1", 512, 3392, 1)
        | _bn("bns1", 512)
        | _linear("convs2", 256, 512, 1)
        | _bn("bns2", 256)
        | _linear("convs3", 50, 256, 1)
    )


LAYOUTS: dict[str, Layout] = {
    "point_mae": point_mae(),
    "point_cmae": point_cmae(),
    "full_40": classifier(40),
    "full_15": classifier(15),
    "linear_40": classifier(40, linear=True),
    "part_segmentation": part_segmentation(),
}
COUNTS = {
    "point_mae": 209,
    "point_cmae": 275,
    "full_40": 174,
    "full_15": 174,
    "linear_40": 160,
    "part_segmentation": 192,
}
