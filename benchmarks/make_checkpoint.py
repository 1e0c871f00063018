"""Write a random checkpoint in the published layout: any shape, well scaled, sharded, from a seed, streamed to disk.

python -m benchmarks.make_checkpoint --output checkpoints/full --published               # 11.7 B parameters, 23 GB
python -m benchmarks.make_checkpoint --output checkpoints/cut --published --layers 2
python -m benchmarks.make_checkpoint --output checkpoints/medium --width 1024 --layers 8
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.qwen_tokenizer import write_tokenizer
from echovlm_edge.export.source.checkpoint import INDEX, expected_tensors
from echovlm_edge.export.source.config import ARCHITECTURE, EchoVLMConfig
from echovlm_edge.runtime.resources.processors import usable_processors

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", "chat_template.json", "preprocessor_config.json", "generation_config.json"),
)
TESTS = Path(__file__).parents[1] / "tests"
GOLDEN = TESTS / "golden" / "checkpoint"
PUBLISHED_CONFIGS = {
    "echovlm": TESTS / "published" / "config.json",
    "qwen2_5_vl": TESTS / "published" / "qwen2_5_vl.json",  # EchoVLM V2's
}
SHARD_BYTES = 4 << 30
CHUNK = 1 << 24  # values generated at a time; each chunk has its own random stream
SAFETENSORS_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def config_like_published(
    width: int = 1024,
    layers: int = 8,
    vocab_size: int = 1024,
    vision_width: int = 320,
    vision_depth: int = 8,
    **changes: Any,
) -> dict[str, Any]:
    """Make a config.json with the published model's proportions at another width; `changes` override its keys."""
    head_dim = 128 if width % 128 == 0 and width >= 1024 else 64
    section = [head_dim // 8, 3 * head_dim // 16, 3 * head_dim // 16]
    block = 128
    scaled = {name: max(block, round(width * ratio / block) * block) for name, ratio in _RATIOS.items()}
    special = json.loads((GOLDEN / "config.json").read_text(encoding="utf-8"))
    tokens = {key: value for key, value in special.items() if key.endswith("token_id")}
    return {
        "architectures": [ARCHITECTURE],
        "hidden_act": "silu",
        "hidden_size": width,
        **scaled,
        "model_type": "qwen2_vl",
        "norm_topk_prob": False,
        "num_attention_heads": width // head_dim,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": layers,
        "num_key_value_heads": max(1, width // head_dim // 7),
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"mrope_section": section, "rope_type": "default", "type": "default"},
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "vocab_size": vocab_size,
        "vision_config": {
            "depth": vision_depth,
            "embed_dim": vision_width,
            "hidden_size": width,
            "num_heads": vision_width // 80,
        },
        **tokens,
        **changes,
    }


_RATIOS = {  # the published model's inner widths divided by its width
    "intermediate_size": 18944 / 3584,
    "shared_expert_intermediate_size": 5632 / 3584,
    "moe_intermediate_size": 1408 / 3584,
}


def published_config(
    layers: int | None = None, vision_depth: int | None = None, family: str = "echovlm"
) -> dict[str, Any]:
    """Read a published config.json, or shorten it to fewer decoder layers and vision blocks."""
    config: dict[str, Any] = json.loads(PUBLISHED_CONFIGS[family].read_text(encoding="utf-8"))
    if layers:
        config["num_hidden_layers"] = layers
    if vision_depth:
        vision = config["vision_config"]
        vision["depth"] = vision_depth
        if "fullatt_block_indexes" in vision:
            vision["fullatt_block_indexes"] = [
                block for block in vision["fullatt_block_indexes"] if block < vision_depth
            ]
    return config


def make_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    tokenizer: Path | None = GOLDEN,
    values: bool = True,
) -> Path:
    """Write the checkpoint.

    Args:
        folder: made if it is missing.
        config: a parsed config.json.
        seed: of the random values; each tensor's come from the seed and its name, whatever the others are.
        dtype: of the tensors.
        tokenizer: a checkpoint folder whose tokenizer, chat template and preprocessor config are copied; None for the
            real Qwen vocabulary (the dashscope package), which asks for the published token ids.
        values: False leaves the tensors as holes in their files: names and shapes, which take no disk space.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2), encoding="utf-8")
    for name in TOKENIZER_FILES if tokenizer else ("chat_template.json",):
        if ((tokenizer or GOLDEN) / name).is_file():
            shutil.copy((tokenizer or GOLDEN) / name, folder / name)
    if tokenizer is None:
        write_tokenizer(folder)
    shapes = expected_tensors(EchoVLMConfig.from_json(config, "config"))
    shards = list(_shards(shapes, dtype.itemsize))
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(folder / file, {name: shapes[name] for name in names}, dtype, seed if values else None)
        weight_map.update(dict.fromkeys(names, file))
    size = sum(map(math.prod, shapes.values())) * dtype.itemsize
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return folder


@dataclass(frozen=True)
class _Chunk:
    """Generate some of a tensor's values, in storage order: every call but the last has CHUNK of them."""

    name: str
    shape: tuple[int, ...]
    number: int
    offset: int  # in the shard, bytes

    def values(self, seed: int) -> torch.Tensor:
        """Generate them, spread as `spread` says."""
        size = min(CHUNK, math.prod(self.shape) - self.number * CHUNK)
        stream = hashlib.sha256(f"{seed} {self.name} {self.number}".encode()).digest()
        noise = torch.randn(size, generator=torch.Generator().manual_seed(int.from_bytes(stream[:7])))
        around, deviation = spread(self.name, self.shape)
        return around + deviation * noise if around else deviation * noise


def spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return the mean and the standard deviation of a tensor's random values, by its name and shape in the checkpoint.

    Activations stay in a normal range: rows of unit gain, norms near one, small biases.
    """
    if "norm" in name or "ln_q" in name:
        return (1.0 if name.endswith("weight") else 0.0), 0.1
    if len(shape) == 1:
        return 0.0, 0.1
    if "embed_tokens" in name:
        return 0.0, 1.0
    gain = 1.0 if any(word in name for word in ("embed", "lm_head", "gate.weight")) else 0.7
    return 0.0, gain / math.sqrt(math.prod(shape[1:]))


def _write_shard(file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, seed: int | None) -> None:
    """A safetensors file: the header's length in 8 bytes, a JSON header, the values; made and written chunk by chunk.

    Without a seed, holes in the place of the values.

    (The library's own writer wants the whole shard in memory.)
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": SAFETENSORS_TYPES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        first = out.tell()
        out.truncate(first + end)
        if seed is None:
            return
        chunks = [
            _Chunk(name, shape, number, first + header[name]["data_offsets"][0] + number * CHUNK * dtype.itemsize)
            for name, shape in shapes.items()
            for number in range(math.ceil(math.prod(shape) / CHUNK))
        ]
        out.flush()

        def write(chunk: _Chunk) -> None:
            values = chunk.values(seed).to(dtype).view(torch.uint8).numpy().data
            written = 0
            while written < len(values):
                written += os.pwrite(out.fileno(), values[written:], chunk.offset + written)

        with ThreadPoolExecutor(usable_processors()) as pool:
            list(pool.map(write, chunks))


def _shards(shapes: Mapping[str, tuple[int, ...]], item_size: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        size += math.prod(shape) * item_size
        names.append(name)
        if size >= SHARD_BYTES:
            yield names
            names, size = [], 0
    if names:
        yield names


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Write a random EchoVLM checkpoint in the published layout.")
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR")
    add("--published", action="store_true", help="the published widths and vocabulary, in bfloat16")
    add(
        "--family",
        choices=PUBLISHED_CONFIGS,
        default="echovlm",
        help="of the model, with --published (default echovlm)",
    )
    add("--width", type=int, default=1024, help="without --published (default 1024)")
    add("--layers", type=int, help="of the decoder (default 8; all 28 with --published)")
    add("--vision-depth", type=int, help="blocks of the vision encoder (default 8; all 32 with --published)")
    add("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.published:
        config = published_config(options.layers, options.vision_depth, options.family)
        make_checkpoint(options.output, config, options.seed, torch.bfloat16, tokenizer=None)
    else:
        config = config_like_published(options.width, options.layers or 8, vision_depth=options.vision_depth or 8)
        make_checkpoint(options.output, config, options.seed)
    print(f"{options.output}: width {config['hidden_size']}, {config['num_hidden_layers']} layers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
