"""What the builder gives to TensorRT, run by the runtime that will run TensorRT's engines: names, types, cache and tokens agree.

ONNX Runtime runs the graphs that TensorRT would parse, in the engines' places, on the device of numpy.
"""

from __future__ import annotations

import numpy as np
import pytest

from echovlm_edge.export.build_engines import BuildOptions
from echovlm_edge.export.parity.reference import TorchBackend
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.plugins.dual_path_moe.library import library_path
from echovlm_edge.runtime.backends import new_cache
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary
from tests.support.demo_reports import CHECKPOINT, reports
from tests.support.numpy_device import NumpyDevice
from tests.support.tensorrt_bundles import backend_of
from tests.support.tensorrt_graphs import build_graphs

pytestmark = pytest.mark.skipif(library_path() is None, reason="installed without a C++ compiler")
MAX_SEQUENCE = 512


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo checkpoint for `rtx` at fp16 (the GPU's kernels do not take the golden one's widths)."""
    output = tmp_path_factory.mktemp("rtx") / "bundle"
    return build_graphs(BuildOptions(CHECKPOINT, output, target="rtx", precision="fp16", max_sequence=MAX_SEQUENCE))


@pytest.fixture(scope="module")
def reference() -> TorchBackend:
    return TorchBackend(Checkpoint(CHECKPOINT))


def test_the_server_writes_what_the_pytorch_model_writes(bundle: Bundle, reference: TorchBackend) -> None:
    device = NumpyDevice()
    written = reports(ReportEngine(bundle, backend_of(bundle, device), options=EngineOptions(2, 1 << 20)))
    assert written == reports(ReportEngine(bundle, reference))
    assert device.launches > 0.8 * sum(map(len, written))


def test_logits_of_prompts_and_steps(bundle: Bundle, reference: TorchBackend) -> None:
    backend, spec = backend_of(bundle, NumpyDevice()), bundle.manifest.model
    cache, expected_cache = new_cache(backend, 40), new_cache(reference, 40)
    assert cache.slots.layout.capacity == MAX_SEQUENCE and cache.max_sequence == 40  # type: ignore[attr-defined]
    rotary = MultimodalRotary(spec.mrope_section, spec.rope_theta)
    for past, count in ((0, 20), (20, 7), (27, 1), (28, 1), (29, 1)):
        embeddings = reference.embed(np.arange(past, past + count) * 17 % spec.vocab_size)
        angles = rotary.angles(np.tile(np.arange(past, past + count), (3, 1)))
        rows = np.array([count - 1])
        expected = reference.decode(embeddings, angles, past, rows, expected_cache)
        logits = np.asarray(backend.decode(embeddings, angles, past, rows, cache))
        # float16 products over three layers: measured 0.1 % of the largest logit.
        np.testing.assert_allclose(logits, expected, atol=5e-3 * float(np.abs(expected).max()))
