"""Where there is no memory for one call: it fails as such, and the engine goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# In a process of its own, since it takes all its memory away.
SCRIPT = """
import resource, sys
from pathlib import Path

import numpy as np

from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.prompting.rotary import vision_angles

bundle = Bundle(Path(sys.argv[1]))
spec = bundle.manifest.model
backend = OnnxRuntimeBackend(bundle, threads=1)
(values,) = [tensor.shape[-1] for tensor in bundle.manifest.part("vision_encoder").inputs if tensor.name == "patches"]


def encode(side):
    patches = np.ones((side * side, int(values)), np.float32)
    return backend.encode(patches, vision_angles((1, side, side), spec.merge_size, spec.vision_head_dim))


before = encode(8)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
try:
    encode(256)
except MemoryError:
    print("no memory")
print("same after" if np.array_equal(encode(8), before) else "another after")
"""


def test_an_image_too_large_for_memory_fails_as_such_and_the_next_is_encoded(golden_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(golden_bundle)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.splitlines() == ["no memory", "same after"], done.stderr
