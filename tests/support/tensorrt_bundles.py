"""Make bundles like the TensorRT builder's, with ONNX graphs in place of engines, for `numpy_device`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx

from echovlm_edge.export.engines.tensorrt_graph import add_best
from echovlm_edge.runtime.backends.gpu.backend import BEST, GpuBackend
from echovlm_edge.runtime.bundle.manifest import MANIFEST, Bundle, describe_file
from tests.support.numpy_device import NumpyDevice, OnnxEngine


def tensorrt_like(
    portable: Path,
    folder: Path,
    best: bool = True,
    floating: str = "float",
    integer: str = "int64",
    capacity: int | None = None,
    batch: int = 4,
) -> Bundle:
    """Copy a portable bundle, with its parts named and described as TensorRT engines.

    Args:
        portable: the bundle to copy.
        folder: where to.
        best: whether the decoder gives the place of the largest logit.
        floating: type of the floating inputs and outputs.
        integer: type of `past`, `logit_rows` and `best`.
        capacity: the cache's length, if the engine was built for one only.
        batch: sequences of a step.
    """
    shutil.copytree(portable, folder)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["toolchain"]["tensorrt_rtx"] = "1.7.1.116"
    manifest["target"], manifest["limits"]["max_batch"] = "rtx", batch
    if capacity:
        manifest["limits"]["max_sequence"] = capacity
    for part in manifest["parts"]:
        model = onnx.load(folder / f"{part['name']}.onnx")  # its weights too: an engine is one file
        if best and part["name"] == "decoder":
            add_best(model.graph)
            part["outputs"].append({"name": BEST, "dtype": "int64", "shape": ["rows"]})
        for tensor in (*part["inputs"], *part["outputs"]):
            tensor["dtype"] = {"float": floating, "int64": integer}.get(tensor["dtype"], tensor["dtype"])
            if capacity and "context" in tensor["shape"]:
                tensor["shape"] = [capacity if size == "context" else size for size in tensor["shape"]]
        for file in part["files"]:
            (folder / file["name"]).unlink()
        engine = f"{part['name']}.engine"
        onnx.save(model, folder / engine)
        file = describe_file(folder, engine)
        part["files"] = [{"name": engine, "bytes": file.bytes, "sha256": file.sha256}]
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return Bundle(folder)


def backend_of(
    bundle: Bundle, device: NumpyDevice, profile: bool = False, before_run: Mapping[str, Callable[[], None]] = {}
) -> GpuBackend:
    """Open the backend with every part on the numpy device; `before_run` by part is for `OnnxEngine`."""
    engines = {
        part.name: OnnxEngine(device, bundle.path / part.files[0].name, part, before_run.get(part.name, lambda: None))
        for part in bundle.manifest.parts
    }
    return GpuBackend(bundle, device, engines, profile)
