"""Open a bundle's graphs as sessions of ONNX Runtime, with its providers, its threads and our operators."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime as ort

from echovlm_edge.plugins.dual_path_moe.library import library_path
from echovlm_edge.runtime.bundle.manifest import FIX, Bundle, Part
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.resources.processors import usable_processors

CPU = "CPUExecutionProvider"
WARNING, ERROR = 2, 3  # ONNX Runtime's severities
SPIN_MICROSECONDS = 10  # as fast as unlimited spinning, and leaves processors to the threads that are waited for
SAID_WITHOUT_MEMORY = (
    "Failed to allocate memory",
    "std::bad_alloc",
)  # messages of its arena, and of operators, ours among them

Provider = tuple[str, dict[str, Any]]  # a name and its options


def session_options(bundle: Bundle, threads: int | None) -> ort.SessionOptions:
    """Set up a bundle's sessions; `threads` defaults to `usable_processors`.

    Raises:
        NotPossibleHere: this install lacks the operators that the bundle needs.
    """
    options = ort.SessionOptions()
    processors = sorted(os.sched_getaffinity(0))
    options.intra_op_num_threads = threads or usable_processors()
    if 1 < options.intra_op_num_threads == len(processors):
        # A worker that wakes up on its caller's processor only runs once the kernel moves it at its next tick, after up to 4 ms. So each
        # worker is pinned to its own processor (numbered from 1), and the caller can run on the one that is left.
        affinities = ";".join(str(processor + 1) for processor in processors[1:])
        options.add_session_config_entry("session.intra_op_thread_affinities", affinities)
    options.log_severity_level = ERROR
    # Worker threads spin only during a call, and only briefly: other threads need the processors.
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    if bundle.manifest.precision == "fp32":
        # Prepacking float32 weights would make a second copy, in addition to the memory-mapped file.
        options.add_session_config_entry("session.disable_prepacking", "1")
    if bundle.manifest.operator_library:
        options.register_custom_ops_library(str(_operator_library(bundle)))
    return options


def _operator_library(bundle: Bundle) -> Path:
    path = library_path()
    if path is None:
        raise NotPossibleHere(
            f"The bundle {bundle.path} needs the operator library {bundle.manifest.operator_library}, which this install "
            "lacks because there was no C++ compiler: install one and reinstall echovlm-edge, or build the bundle with "
            "this install."
        )
    return path


def open_session(
    bundle: Bundle, part: Part, options: ort.SessionOptions, providers: Sequence[Provider], trace: Path | None = None
) -> ort.InferenceSession:
    """Load a part's graph; `trace` begins the name of the file with each operator's times.

    Raises:
        NotPossibleHere: ONNX Runtime cannot load it; the sentence names the file.
    """
    path = bundle.path / part.files[0].name
    options.enable_profiling = trace is not None
    if trace:
        options.profile_file_prefix = str(trace)
    try:
        return ort.InferenceSession(path, options, providers=list(providers))
    except Exception as error:  # ONNX Runtime raises a different class per status, without a common base class
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise NotPossibleHere(f"ONNX Runtime cannot load {path} ({reason}): {FIX}.") from None


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise MemoryError if ONNX Runtime's message says that memory ran out, as it has no error class for that."""
    try:
        yield
    except Exception as error:
        if any(said in str(error) for said in SAID_WITHOUT_MEMORY):
            raise MemoryError from None
        raise
