"""Write the real Qwen vocabulary as a checkpoint's tokenizer files, from the dashscope wheel, with EchoVLM's special tokens.

The published checkpoint has Qwen2-VL's tokenizer: the vocabulary's 151,643 tokens, then these at ids 151643 to 151656.
"""

from __future__ import annotations

import json
from importlib.metadata import distribution
from pathlib import Path

from tokenizers import AddedToken

SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
FIRST_SPECIAL_ID = 151643


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, preprocessor_config.json, generation_config.json as Qwen2-VL's published files have them."""
    from transformers.convert_slow_tokenizer import TikTokenConverter
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

    ranks = distribution("dashscope").locate_file("dashscope/resources/qwen.tiktoken")
    vocabulary, merges = TikTokenConverter().extract_vocab_merges_from_model(str(ranks))
    assert len(vocabulary) == FIRST_SPECIAL_ID, f"{ranks} is another vocabulary, of {len(vocabulary)} tokens"
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges).backend_tokenizer
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    pixels = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 16384}
    _write(folder / "preprocessor_config.json", {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, **pixels})
    stop = [SPECIAL_TOKENS.index(token) + FIRST_SPECIAL_ID for token in ("<|im_end|>", "<|endoftext|>")]
    _write(folder / "generation_config.json", {"bos_token_id": FIRST_SPECIAL_ID, "eos_token_id": stop})


def _write(file: Path, content: dict[str, object]) -> None:
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
