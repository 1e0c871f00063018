"""Time a random Q4_0 model of our decoder's shapes in llama.cpp, in the same way as ours.

llama.cpp has no DualPathMoE, so a Qwen2-MoE model is used, whose shared expert is as wide as our dense path and shared expert
together: a token uses the same number of weights. Q4_0 takes 4.5 bits per weight, our int4 4.25.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray

from benchmarks.dual_path_moe import DECODE, PREFILL
from echovlm_edge.export.source.config import DecoderConfig

ARCHITECTURE = "qwen2moe"
Q4_0_WEIGHTS, Q4_0_BYTES = 32, 18  # a block: a float16 scale, then 16 bytes of two weights each


def write_model(path: Path, config: DecoderConfig) -> None:
    """Write a random model of the decoder's shapes as GGUF."""
    dense, shared, *experts = config.group_widths
    hidden = config.hidden_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(dense)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_expert_count(len(experts))
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(experts[0])
    writer.add_expert_shared_feed_forward_length(dense + shared)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    generator = np.random.default_rng(0)

    def quantized(name: str, *shape: int) -> None:
        writer.add_tensor(f"{name}.weight", _q4_0(generator, shape), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def floats(name: str, *shape: int) -> None:
        values = generator.standard_normal(shape, np.float32) / np.sqrt(hidden) if "inp" in name else np.ones(shape)
        writer.add_tensor(name, values.astype(np.float32))

    for name in ("token_embd", "output"):
        quantized(name, config.vocab_size, hidden)
    floats("output_norm.weight", hidden)
    for layer in range(config.num_hidden_layers):
        block = f"blk.{layer}"
        for norm in ("attn_norm", "ffn_norm"):
            floats(f"{block}.{norm}.weight", hidden)
        for projection, width in (("attn_q", queries), ("attn_k", keys), ("attn_v", keys)):
            quantized(f"{block}.{projection}", width, hidden)
            floats(f"{block}.{projection}.bias", width)
        quantized(f"{block}.attn_output", hidden, queries)
        floats(f"{block}.ffn_gate_inp.weight", len(experts), hidden)
        floats(f"{block}.ffn_gate_inp_shexp.weight", hidden)
        for projection in ("gate", "up"):
            quantized(f"{block}.ffn_{projection}_exps", len(experts), experts[0], hidden)
            quantized(f"{block}.ffn_{projection}_shexp", dense + shared, hidden)
        quantized(f"{block}.ffn_down_exps", len(experts), hidden, experts[0])
        quantized(f"{block}.ffn_down_shexp", hidden, dense + shared)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _q4_0(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    *rows, columns = shape
    blocks = generator.integers(0, 256, (*rows, columns // Q4_0_WEIGHTS, Q4_0_BYTES), dtype=np.uint8)
    blocks[..., :2] = np.array([0.25 / np.sqrt(columns)], np.float16).view(np.uint8)
    return blocks.reshape(*rows, -1)


class LlamaCpp:
    """Load the model in llama.cpp, with as many threads for prefill as for decode."""

    def __init__(self, path: Path, threads: int, **options: Any) -> None:
        self._model = llama_cpp.Llama(
            str(path),
            n_ctx=2 * PREFILL,
            n_batch=PREFILL,
            n_ubatch=PREFILL,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
            **options,
        )
        self._tokens = np.random.default_rng(0).integers(0, self._model.n_vocab(), PREFILL + DECODE + 1).tolist()

    def tokens_per_second(self) -> dict[str, float]:
        """Return the seconds of a prefill, and of the median decode step after it."""
        self._model.reset()
        prefill = self._seconds(self._tokens[:PREFILL])
        steps = [self._seconds([token]) for token in self._tokens[PREFILL:]]
        return {"prefill": PREFILL / prefill, "decode": 1 / median(steps[1:])}

    def _seconds(self, tokens: list[int]) -> float:
        started = time.perf_counter()
        self._model.eval(tokens)
        llama_cpp.llama_synchronize(self._model.ctx)
        return time.perf_counter() - started

    def close(self) -> None:
        self._model.close()
