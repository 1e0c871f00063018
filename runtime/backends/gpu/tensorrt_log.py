"""The one logger that TensorRT is given: it keeps errors, because TensorRT's calls return no reasons, and prints nothing."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

KEPT = 1000  # messages: a build logs fewer, and a server that runs for months keeps no more


@dataclass(frozen=True)
class TensorRTErrors:
    """What TensorRT logged as errors, the oldest first."""

    messages: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT))

    @property
    def last(self) -> str:
        """Return the first line of the last error, to end a sentence with."""
        return self.messages[-1].splitlines()[0].rstrip(".") if self.messages else "it gave no reason"


def error_logger(module: Any, errors: TensorRTErrors) -> Any:
    """Make an ILogger of `tensorrt` or `tensorrt_rtx` that adds to `errors`; the caller must keep a reference to it."""

    class ErrorLogger(module.ILogger):  # TensorRT calls it back
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR):
                errors.messages.append(message)

    return ErrorLogger()
