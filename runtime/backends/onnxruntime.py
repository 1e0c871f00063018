"""ONNX Runtime: the bundle's parts as sessions, the KV cache as buffers that stay where they are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from echovlm_edge.plugins.dual_path_moe.library import library_path
from echovlm_edge.runtime.backends import Cache, Floats
from echovlm_edge.runtime.backends.providers import ON_CPU, Provider
from echovlm_edge.runtime.bundle import Bundle, Part
from echovlm_edge.runtime.errors import NotPossibleHere
from echovlm_edge.runtime.rotary import Angles

WARNING, ERROR = 2, 3  # ONNX Runtime's severities


@dataclass(frozen=True)
class OrtCache:
    """One sequence's keys and values: a buffer [1, kv_heads, max_sequence, head_dim] per layer, each its own past and present.

    Of the type that the decoder's graph has for them, float32 or float16.
    """

    keys: tuple[ort.OrtValue, ...]
    values: tuple[ort.OrtValue, ...]

    @property
    def max_sequence(self) -> int:
        """How many tokens it can hold."""
        return int(self.keys[0].shape()[2])

    @property
    def addresses(self) -> tuple[int, ...]:
        """Where the buffers are: they never move."""
        return tuple(buffer.data_ptr() for buffer in (*self.keys, *self.values))


class OnnxRuntimeBackend:
    """The three parts of a bundle of ONNX graphs, on the CPU or by one of ONNX Runtime's GPU providers.

    Raises:
        NotPossibleHere: a part cannot be loaded, or this install lacks the operators it needs; the sentence names the file.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None, provider: Provider = ON_CPU) -> None:
        """Load the parts; `threads` defaults to the cores this process may use."""
        options = _session_options(bundle, threads)
        self._device = provider.device
        self._spec = bundle.manifest.model
        self._embedding = bundle.token_embedding()
        self._vision, self._projector, self._decoder = (
            _session(bundle, bundle.manifest.part(name), options, provider)
            for name in ("vision_encoder", "projector", "decoder")
        )
        inputs = {tensor.name: tensor for tensor in bundle.manifest.part("decoder").inputs}
        self._wants_mask = "mask" in inputs
        self._cache_dtype = np.dtype(np.float16 if inputs["keys.0"].dtype == "float16" else np.float32)

    def encode(self, patches: Floats, angles: Angles) -> Floats:
        """Vision encoder: see `Backend.encode`."""
        return _run(self._vision, {"patches": patches, "cos": angles.cos, "sin": angles.sin})

    def project(self, features: Floats) -> Floats:
        """Projector: see `Backend.project`."""
        return _run(self._projector, {"features": features})

    def embed(self, token_ids: NDArray[np.int64]) -> Floats:
        """Token embedding: see `Backend.embed`."""
        return self._embedding[token_ids].astype(np.float32)

    def new_cache(self, max_sequence: int) -> OrtCache:
        """Buffers for one sequence, zeroed."""
        shape = (1, self._spec.num_kv_heads, max_sequence, self._spec.head_dim)
        keys, values = (
            tuple(
                ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, self._cache_dtype), self._device)
                for _ in range(self._spec.num_layers)
            )
            for _ in range(2)
        )
        return OrtCache(keys, values)

    def decode(
        self, embeddings: Floats, angles: Angles, past: int, logit_rows: NDArray[np.int64], cache: Cache
    ) -> Floats:
        """Decoder: see `Backend.decode`."""
        assert isinstance(cache, OrtCache)
        binding = self._decoder.io_binding()
        feeds: dict[str, NDArray[Any]] = {
            "embeddings": embeddings[None],
            "cos": angles.cos[None],
            "sin": angles.sin[None],
            "past": np.array([past]),
            "logit_rows": logit_rows,
        }
        if self._wants_mask:
            positions = past + np.arange(len(embeddings))
            feeds["mask"] = (np.arange(cache.max_sequence) <= positions[:, None])[None, None]
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, buffers in (("keys", cache.keys), ("values", cache.values)):
            for layer, buffer in enumerate(buffers):
                binding.bind_ortvalue_input(f"{name}.{layer}", buffer)
                binding.bind_ortvalue_output(f"present_{name}.{layer}", buffer)
        binding.bind_output("logits")
        self._decoder.run_with_iobinding(binding)
        logits: Floats = binding.get_outputs()[-1].numpy()
        return logits


def _session_options(bundle: Bundle, threads: int | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.log_severity_level = ERROR
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    if bundle.manifest.operator_library:
        options.register_custom_ops_library(str(_operator_library(bundle)))
    return options


def _operator_library(bundle: Bundle) -> Path:
    path = library_path()
    if path is None:
        raise NotPossibleHere(
            f"The bundle {bundle.path} needs the operator library {bundle.manifest.operator_library}, which this install "
            "was made without for want of a C++ compiler: install one and echovlm-edge anew, or build the bundle with this "
            "install."
        )
    return path


def _session(bundle: Bundle, part: Part, options: ort.SessionOptions, provider: Provider) -> ort.InferenceSession:
    path = bundle.path / part.files[0].name
    try:
        session = ort.InferenceSession(path, options, providers=list(provider.chain))
    except Exception as error:  # ONNX Runtime raises a class of its own per status, with no common base
        reason = str(error).splitlines()[0]
        raise NotPossibleHere(f"ONNX Runtime cannot load {path} ({reason}): build the bundle anew.") from None
    provider.check(session, path)
    return session


def _run(session: ort.InferenceSession, feeds: dict[str, Floats]) -> Floats:
    output: Floats = session.run(None, feeds)[0]
    return output
