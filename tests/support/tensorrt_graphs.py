"""Make TensorRT bundles whose engines are the graphs that TensorRT would parse, so that ONNX Runtime can run them.

16-bit products and caches, the cache's length fixed, the best token added: all that the builder does but TensorRT's own part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from rich.console import Console

from echovlm_edge.export import build_engines
from echovlm_edge.export.build_engines import BuildOptions, build
from echovlm_edge.export.engines import tensorrt
from echovlm_edge.export.engines.tensorrt import EngineOptions
from echovlm_edge.export.engines.tensorrt_graph import write_graph
from echovlm_edge.export.graph.graph_check import checkable_part
from echovlm_edge.runtime.bundle.manifest import Bundle, Part, describe_file


def build_graphs(options: BuildOptions) -> Bundle:
    """Build a bundle for a TensorRT target, with the graphs in the engines' files."""
    with pytest.MonkeyPatch.context() as patch:
        opened = SimpleNamespace(name="tensorrt_rtx", version="1.7.1.116")
        patch.setattr(build_engines, "open_tensorrt", lambda name: opened)
        patch.setattr(build_engines, "replace_by_engines", _graphs_for_engines)
        build(options, Console(quiet=True))
    return Bundle(options.output)


def _graphs_for_engines(
    trt: object, folder: Path, parts: Sequence[Part], options: EngineOptions, advance: Callable[[int], None]
) -> list[Part]:
    """Replace the builder: write each part's graph, as TensorRT would parse it, to the engine's file."""
    built = []
    for part in parts:
        checked = checkable_part(folder, part)
        prepared = folder / f"{part.name}.prepared.onnx"
        graph = write_graph(folder / checked.files[0].name, prepared, options.limits.max_sequence, (10, 15)).graph
        engine = f"{part.name}.engine"
        onnx.save(onnx.load(prepared), folder / engine)
        for name in (prepared.name, checked.files[0].name, *(file.name for file in part.files)):
            (folder / name).unlink()
        inputs, outputs = (tuple(map(tensorrt._describe, values)) for values in (graph.input, graph.output))
        built.append(replace(part, files=(describe_file(folder, engine),), inputs=inputs, outputs=outputs))
    return built
