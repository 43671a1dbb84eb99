"""Lets the tests of this folder import the helpers beside them; tiny towers written to files once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny_towers import JOINT, LAYERS, PATCH, SIZE, WIDTH, WORDS, randomize, save_processor, write_open_clip


@pytest.fixture(scope="session")
def open_clip_vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Name and weights file of a tiny vision transformer pair of open_clip."""
    vision = {"image_size": SIZE, "patch_size": PATCH, "width": WIDTH, "layers": LAYERS, "head_width": 16}
    return write_open_clip(tmp_path_factory.mktemp("open_clip_vit"), "pc3d-tiny-vit", vision)


@pytest.fixture(scope="session")
def open_clip_resnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Name and weights file of a tiny ResNet pair of open_clip."""
    vision = {"image_size": 64, "width": 8, "layers": [1, 1, 1, 1], "head_width": 32}
    return write_open_clip(tmp_path_factory.mktemp("open_clip_resnet"), "pc3d-tiny-resnet", vision)


@pytest.fixture(scope="session")
def transformers_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny CLIP model of transformers, with a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": WIDTH // 16,
        "image_size": SIZE,
        "patch_size": PATCH,
        "hidden_act": "gelu",
    }
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": len(WORDS),
        "max_position_embeddings": 12,
        "eos_token_id": 3,
        "bos_token_id": 2,
        "pad_token_id": 0,
    }
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=JOINT))
    randomize(model, seed=2)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", eos_token="[EOS]", bos_token="[BOS]", unk_token="[UNK]"
    ).save_pretrained(folder)
    save_processor(folder)
    return str(folder)
