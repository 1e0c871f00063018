"""Read operator times from an engine's own profiler, per node and run: from ONNX Runtime's file, or TensorRT's callbacks."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class NodeTime:
    """One node in one run of a part; `tokens` is the run's number of tokens, if it is the decoder's and known."""

    name: str
    kind: str
    seconds: float
    tokens: int | None = None


@runtime_checkable
class ProfiledBackend(Protocol):
    """A backend that can be opened to measure its operators' times, which makes it slower."""

    def operator_times(self) -> dict[str, list[list[NodeTime]]]:
        """Return every run of each part since the backend was opened, by part; to be called once.

        The result is empty if the backend was not opened with `profile`.
        """
        ...


def onnxruntime_runs(trace: Path) -> list[list[NodeTime]]:
    """Read the runs from a file that ONNX Runtime's profiler wrote."""
    events = json.loads(trace.read_text(encoding="utf-8"))
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    nodes.sort(key=lambda event: event["ts"])
    runs: list[list[NodeTime]] = []
    seen: set[str] = set()
    for event in nodes:
        args = event["args"]
        if not runs or event["name"] in seen:  # a run has each node once
            runs.append([])
            seen = set()
        seen.add(event["name"])
        name = event["name"].removesuffix("_kernel_time")
        runs[-1].append(NodeTime(name, args["op_name"], event["dur"] / 1e6, _tokens(args)))
    return runs


def _tokens(args: dict[str, Any]) -> int | None:
    """Read from a norm's input shape, [sequences, tokens, width], how many tokens of a sequence a run has."""
    if "norm" not in args["op_name"].lower():
        return None
    shapes = (shape for typed in args.get("input_type_shape", ()) for shape in typed.values())
    return next((int(shape[1]) for shape in shapes if len(shape) == 3), None)


@dataclass
class LayerTimes:
    """Collects what TensorRT's IProfiler reports of one part: a call for each layer of a run, in its order."""

    runs: list[list[NodeTime]] = field(default_factory=list)
    _current: list[NodeTime] = field(default_factory=list)

    def report(self, name: str, milliseconds: float) -> None:
        """Record one layer of the run that just ended; a fused layer's name is that of several."""
        first = name.split(" + ")[0].split("/")[-1].removeprefix("node_")
        self._current.append(NodeTime(name, first.rstrip("0123456789").rstrip("_") or name, milliseconds / 1e3))

    def end_run(self, tokens: int | None = None) -> None:
        """Close a run: all reports since the last call belong to it."""
        self.runs.append([replace(node, tokens=tokens) for node in self._current])
        self._current.clear()
