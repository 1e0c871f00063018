"""The server's log: a line of JSON for each event, with the request's id and never a request's content."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from echovlm_edge.runtime.call_record import CallRecord

# What a record may carry beside its message; nothing else is written, so that nothing slips in.
FIELDS = (
    "request_id",
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
)

_log = logging.getLogger(__name__)


class JsonLines(logging.Formatter):
    """One object a line: time (UTC), level, logger, message, and those of `FIELDS` that the record has."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; an exception's own text is left out, as it could quote a request."""
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
    """The same for a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields = "".join(f" {name}={getattr(record, name)}" for name in FIELDS if hasattr(record, name))
        time = self.formatTime(record, "%H:%M:%S")
        return f"{time} {record.levelname.lower():7} {record.getMessage()}{fields}"


def start(as_json: bool) -> None:
    """Log to stderr from now on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if as_json else PlainLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def log_call(call: CallRecord) -> None:
    """One line for a call that ended."""
    fields: dict[str, object] = {
        "request_id": call.id,
        "method": call.method,
        "client": call.client.name,
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
