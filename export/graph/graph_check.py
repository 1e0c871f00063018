"""Make a TensorRT part's graph run in ONNX Runtime on a CPU, so that its parity can be measured without a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from echovlm_edge.export.bundle.bundle_folder import BundleFolder
from echovlm_edge.export.model.operators import DOMAIN
from echovlm_edge.plugins.dual_path_moe.library import OPERATOR_LIBRARY, library_path
from echovlm_edge.runtime.bundle.manifest import Bundle, Manifest, Part, describe_file

PLUGIN_ATTRIBUTES = ("plugin_namespace", "plugin_version")
# Operators with float32 activations alone on a CPU, and how many inputs are activations; DualPathMoE's weights stay as they are.
WIDE_ONLY = {(DOMAIN, "DualPathMoE"): 5, ("com.microsoft", "MultiHeadAttention"): 6}  # its fourth and fifth are absent


@contextlib.contextmanager
def checkable(folder: BundleFolder, manifest: Manifest) -> Iterator[Bundle | None]:
    """Yield a bundle being written, with graphs that ONNX Runtime can run here; they are deleted at the end of the block.

    None where that takes our operators and this install has none.
    """
    native = manifest.operator_library is not None
    if native and library_path() is None:
        yield None
        return
    parts = tuple(checkable_part(folder.path, part) for part in manifest.parts)
    library = OPERATOR_LIBRARY if native else None
    folder.write_manifest(replace(manifest, parts=parts, target="cpu", operator_library=library))
    try:
        yield Bundle(folder.path)
    finally:
        for part in parts:
            (folder.path / part.files[0].name).unlink()


def checkable_part(folder: Path, part: Part) -> Part:
    """Write `<part>.check.onnx` next to a part's graph, sharing its weights; returns the part with that graph.

    Operators that ONNX Runtime has on a CPU in float32 only are computed in float32 between casts; all others keep the types that
    TensorRT gets.
    """
    model = onnx.load(folder / part.files[0].name, load_external_data=False)
    nodes = [made for node in model.graph.node for made in _widened(node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    name = f"{part.name}.check.onnx"
    onnx.save(model, folder / name)
    return replace(part, files=(describe_file(folder, name), *part.files[1:]))


def _widened(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    activations = WIDE_ONLY.get((node.domain, node.op_type))
    if activations is None:
        return [node]
    wide = onnx.NodeProto()
    wide.CopyFrom(node)
    casts = []
    for index, name in enumerate(node.input[:activations]):
        if not name:  # an optional input that is absent
            continue
        wide.input[index] = f"{node.name}/wide/{name}"
        casts.append(helper.make_node("Cast", [name], [wide.input[index]], to=TensorProto.FLOAT))
    wide.output[0] = f"{node.name}/wide"
    kept = [attribute for attribute in node.attribute if attribute.name not in PLUGIN_ATTRIBUTES]
    del wide.attribute[:]
    wide.attribute.extend(kept)
    return [*casts, wide, helper.make_node("Cast", [wide.output[0]], [node.output[0]], to=TensorProto.FLOAT16)]
