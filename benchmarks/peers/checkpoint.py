"""Write the checkpoint that all peers convert: random weights in Qwen2.5-VL-7B's shapes and layout, with what their converters read."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.make_checkpoint import make_checkpoint, published_config
from benchmarks.qwen_tokenizer import FIRST_SPECIAL_ID, SPECIAL_TOKENS

FAMILY = "qwen2_5_vl"
FULL_LAYERS, FULL_DEPTH = 28, 32
WINDOW_PERIOD = 8  # of this many vision blocks one attends to the whole picture
IMAGE_MEAN, IMAGE_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def vision_depth(layers: int) -> int:
    """Return the vision blocks that go with so many decoder layers: all, or one period of windows for a quick version."""
    return FULL_DEPTH if layers >= FULL_LAYERS else WINDOW_PERIOD


def peers_checkpoint(folder: Path, layers: int) -> Path:
    """Return the checkpoint, made where it is missing: bfloat16, 3.9 GB at 4 layers and 16.6 GB at 28."""
    if (folder / "tokenizer_config.json").is_file():  # written last
        return folder
    config = published_config(layers, vision_depth(layers), FAMILY)
    make_checkpoint(folder, config, dtype=torch.bfloat16, tokenizer=None)
    _add_tokenizer_files(folder)
    return folder


def _add_tokenizer_files(folder: Path) -> None:
    """Write what Hugging Face's readers want beside the files that ours needs."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    _write(folder / "vocab.json", model["vocab"])
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *merges)) + "\n", encoding="utf-8")
    pixels = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    pixels |= {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
        "size": {"shortest_edge": pixels["min_pixels"], "longest_edge": pixels["max_pixels"]},
    }
    _write(folder / "preprocessor_config.json", pixels)
    template = json.loads((folder / "chat_template.json").read_text(encoding="utf-8"))["chat_template"]
    added = {
        str(FIRST_SPECIAL_ID + place): {
            "content": token,
            "special": True,
            **dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False),
        }
        for place, token in enumerate(SPECIAL_TOKENS)
    }
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "processor_class": "Qwen2_5_VLProcessor",
            "added_tokens_decoder": added,
            "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
            "add_bos_token": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "chat_template": template,
            "model_max_length": 131072,
        },
    )


def _write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")
