"""The server's log: one line per event, with the request's id and never a request's content."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from traceback import extract_tb
from types import TracebackType
from typing import Any

from echovlm_edge.runtime.observability.ended_call import EndedCall
from echovlm_edge.runtime.observability.log_writer import LogWriter

# The fields that a record may carry besides its message; no others are written, so that no content slips in.
FIELDS = (
    "request_id",
    "door",
    "method",
    "client",
    "outcome",
    "seconds",
    "queue_seconds",
    "first_token_seconds",
    "prompt_tokens",
    "image_tokens",
    "reused_tokens",
    "generated_tokens",
    "peer",
    "tried",
    "bundle_id",
    "study",
    "version",
    "ae_title",
    "destination",
)

FRAMES = 8  # of an exception that nobody caught

_log = logging.getLogger(__name__)


class JsonLines(logging.Formatter):
    """Format records as one JSON object per line: time (UTC), level, logger, message, and those of `FIELDS` that are set."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; an exception's own text is left out, as it could quote a request."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name.rpartition(".")[2],
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info and record.exc_info[0]:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line, ensure_ascii=False)


class PlainLines(logging.Formatter):
    """Format the same contents for a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        fields = "".join(f" {name}={getattr(record, name)}" for name in FIELDS if hasattr(record, name))
        time = self.formatTime(record, "%H:%M:%S")
        return f"{time} {record.levelname.lower():7} {record.getMessage()}{fields}"


def start(as_json: bool) -> None:
    """Start to log to stderr, uncaught exceptions included."""
    handler = LogWriter(sys.stderr)
    handler.addFilter(_without_contents)
    handler.setFormatter(JsonLines() if as_json else PlainLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.raiseExceptions = False  # otherwise a line that cannot be written would print a traceback
    sys.excepthook = lambda kind, error, trace: log_uncaught("the process", kind, trace)
    sys.unraisablehook = lambda args: log_uncaught("a finalizer", args.exc_type, args.exc_traceback)
    threading.excepthook = _log_dead_thread


def flush() -> None:
    """Wait a moment for all logged lines to be written."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def _without_contents(record: logging.LogRecord) -> bool:
    """Reduce gRPC's own lines to their topic, as they quote metadata and exceptions."""
    if record.name.startswith("grpc"):
        words = itertools.takewhile(str.isalpha, str(record.msg).split())
        record.msg, record.args = f"gRPC reports: {' '.join(words)}", ()
    return True


def log_uncaught(where: str, kind: type[BaseException], trace: TracebackType | None) -> None:
    """Log an uncaught exception: its type and place, without its text, which could quote a request."""
    _log.error("%s failed with %s (%s)", where, kind.__name__, _place(trace))


def log_uncaught_in_loop(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an event loop's uncaught exception, as its exception handler. The loop's own message would quote the exception."""
    error = context.get("exception")
    if isinstance(error, BaseException):
        log_uncaught("an asynchronous task", type(error), error.__traceback__)
    else:
        _log.error("the event loop reported a fault")


def _log_dead_thread(args: threading.ExceptHookArgs) -> None:
    if not issubclass(args.exc_type, SystemExit):
        log_uncaught(f"thread {args.thread.name if args.thread else '?'}", args.exc_type, args.exc_traceback)


def _place(trace: TracebackType | None) -> str:
    """Format a traceback as files, lines and functions, the innermost first."""
    frames = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(extract_tb(trace))]
    return " < ".join(frames[:FRAMES]) or "no traceback"


def log_call(call: EndedCall) -> None:
    """Log a call that ended."""
    fields: dict[str, object] = {
        "request_id": call.id,
        "door": call.door,
        "method": call.method,
        "client": call.client_name,
        "outcome": call.outcome,
        "seconds": round(call.seconds, 4),
    }
    if done := call.finished:
        stages = {stage.value: seconds for stage, seconds in done.seconds.items()}
        fields |= {
            "queue_seconds": round(stages.get("queue", 0.0), 4),
            "first_token_seconds": done.first_token_seconds and round(done.first_token_seconds, 4),
            "prompt_tokens": done.prompt_tokens,
            "image_tokens": done.image_tokens,
            "reused_tokens": done.reused_tokens,
            "generated_tokens": len(done.token_ids),
        }
    _log.info("call", extra=fields)
