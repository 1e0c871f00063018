"""Compare formats of 4 bits on the same weights: the error of the weights, and of what the decoder's layers compute of real activations.

pip install ".[llama]"; python -m benchmarks.formats                  with llama.cpp's Q4_0 and Q4_K, by its own quantizer

Weights are the decoder's linear layers and DualPathMoE blocks, each rounded alone; activations are those of the PyTorch model in float32 on
the demo's own texts. A weight is taken as rows of 256 values, whatever its own width: the demo's are no multiples of 128 or 256.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from tokenizers import Tokenizer
from torch import Tensor, nn

from benchmarks.divergence import answer_logits, exchanges
from echovlm_edge.export.model.dual_path_moe import DualPathMoE
from echovlm_edge.export.model.operators import Linear
from echovlm_edge.export.parity.reference import TorchBackend
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.weights.rounding import ROUNDINGS, Rounding
from echovlm_edge.runtime.backends import Floats
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.tables import figures, names, new_table, print_table
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings
from echovlm_edge.runtime.prompting.prompt import PromptBuilder

WIDTH = 256  # a super-block of Q4_K
STUDIES = range(10)
MOST_TOKENS = 2000

Format = Callable[[Floats], Floats]  # rows of WIDTH values to those that they are stored as


def ours(rounding: Rounding, block: int) -> Format:
    """Return our int4 with float16 scales."""

    def stored(rows: Floats) -> Floats:
        codes, scales = rounding(rows, 4, block, scale_type=np.float16)
        values: Floats = codes.reshape(*scales.shape, -1) * scales.astype(np.float32)[..., None]
        return values.reshape(rows.shape)

    return stored


def llama_cpp(library: Path) -> dict[str, tuple[float, Format]]:
    """Return llama.cpp's formats: bits of a weight, and the format, by `ggml_quantize_chunk` without an importance matrix."""
    import gguf

    ggml = ctypes.CDLL(str(library))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t

    def stored(kind: gguf.GGMLQuantizationType, rows: Floats) -> Floats:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        packed = np.empty((len(rows), rows.shape[1] // block * size), np.uint8)
        sizes = (ctypes.c_int64(0), ctypes.c_int64(len(rows)), ctypes.c_int64(rows.shape[1]))
        ggml.ggml_quantize_chunk(
            ctypes.c_int(kind), ctypes.c_void_p(rows.ctypes.data), ctypes.c_void_p(packed.ctypes.data), *sizes, None
        )
        return gguf.dequantize(packed, kind)

    kinds = (gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q4_K)
    return {
        f"llama.cpp {kind.name}": (
            8 * gguf.GGML_QUANT_SIZES[kind][1] / gguf.GGML_QUANT_SIZES[kind][0],
            partial(stored, kind),
        )
        for kind in kinds
    }


def installed_ggml() -> Path | None:
    """Return the library of llama-cpp-python, if it is installed."""
    found = importlib.util.find_spec("llama_cpp")
    libraries = sorted(Path(found.origin).parent.rglob("libggml-base.*")) if found and found.origin else []
    return libraries[0] if libraries else None


def activations(checkpoint: Checkpoint, bundle: Bundle, console: Console) -> list[tuple[str, nn.Module, Tensor]]:
    """Collect what enters each layer of the decoder: its name, the layer, float32 [tokens, width]."""
    reference = TorchBackend(checkpoint)
    spec = bundle.manifest.model
    prompts = PromptBuilder(
        Tokenizer.from_str(checkpoint.tokenizer_json()),
        checkpoint.chat_template(),
        spec.image_token_id,
        spec.merge_size,
    )
    layers = {
        name: layer
        for name, layer in reference.parts.decoder.named_modules()
        if isinstance(layer, (Linear, DualPathMoE)) and name != "lm_head"
    }
    entered: dict[str, list[Tensor]] = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, inputs, name=name: entered[name].append(inputs[0].flatten(0, -2)))
    settings = PreprocessSettings.from_config(bundle.manifest.preprocess)
    for exchange in exchanges(STUDIES, settings):
        answer_logits(reference, prompts, spec, exchange)
    console.print(f"{sum(map(len, next(iter(entered.values())))):,} tokens read", highlight=False)
    return [(name, layers[name], torch.cat(entered[name])[:MOST_TOKENS]) for name in layers]


@contextmanager
def rounded(layer: nn.Module, stored: Format) -> Iterator[float]:
    """Round a layer's matrices inside the block; gives the error's share of their norm."""
    names_of = ("gate", "up", "down") if isinstance(layer, DualPathMoE) else ("weight",)
    before = {name: getattr(layer, name).data for name in names_of}
    error = norm = 0.0
    for name, weight in before.items():
        values = weight.numpy()
        rows = np.ascontiguousarray(values.reshape(-1, WIDTH))
        after = stored(rows)
        error, norm = error + float(((after - rows) ** 2).sum()), norm + float((rows**2).sum())
        getattr(layer, name).data = torch.from_numpy(after.reshape(values.shape))
    yield (error / norm) ** 0.5
    for name, weight in before.items():
        getattr(layer, name).data = weight


@torch.inference_mode()
def errors(layers: Sequence[tuple[str, nn.Module, Tensor]], stored: Format) -> NDArray[np.float64]:
    """Compute the relative error of each layer's weights, and of its output: [layers, 2]."""
    found = []
    for _, layer, entering in layers:
        exact = layer(entering[None])
        with rounded(layer, stored) as of_weights:
            found.append((of_weights, float((layer(entering[None]) - exact).norm() / exact.norm())))
    return np.array(found)


def main() -> int:
    """Run the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("demo/checkpoint"))
    parser.add_argument(
        "--bundle", type=Path, default=Path("bundles/demo"), help="one that was built from the checkpoint"
    )
    parser.add_argument(
        "--ggml", type=Path, default=installed_ggml(), help="llama.cpp's libggml-base (default: the installed one)"
    )
    parser.add_argument("--json", type=Path, help="write the figures")
    options = parser.parse_args()
    chosen: dict[str, tuple[float, Format]] = {
        "plain, 128": (4 + 16 / 128, ours(ROUNDINGS["plain"], 128)),
        **{f"search, {block}": (4 + 16 / block, ours(ROUNDINGS["search"], block)) for block in (128, 64, 32)},
    }
    if options.ggml:
        chosen |= llama_cpp(options.ggml)
    layers = activations(Checkpoint(options.checkpoint), Bundle(options.bundle), Console(stderr=True))
    table = new_table(
        "Relative error, mean of the decoder's layers",
        names("format"),
        *map(figures, ("bits", "weights", "outputs", "squared,\nto the first")),
    )
    rows: list[dict[str, object]] = []
    first = None
    for name, (bits, stored) in chosen.items():
        found = errors(layers, stored)
        of_weights, of_outputs = found.mean(0)
        squares = float((found[:, 1] ** 2).mean())
        first = first or squares
        table.add_row(name, f"{bits:.3f}", f"{of_weights:.4f}", f"{of_outputs:.4f}", f"{squares / first:.3f}")
        rows.append(
            {"format": name, "bits": bits, "weights": of_weights, "outputs": of_outputs, "squared": squares / first}
        )
    print_table(Console(), table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
