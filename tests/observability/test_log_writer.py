"""The server's log beside a reader that hangs: nobody waits for it, and what was lost is counted."""

from __future__ import annotations

import io
import logging
import threading

from echovlm_edge.runtime.observability import log_writer, logs
from echovlm_edge.runtime.observability.log_writer import LogWriter


class HangingReader(io.StringIO):
    """A stream that takes nothing before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.reads, self.asked = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.asked.set()
        self.reads.wait(60)
        return super().write(text)


def record(text: str, name: str = "echovlm_edge.runtime.serving.transport.server") -> logging.LogRecord:
    return logging.LogRecord(name, logging.INFO, "", 0, text, (), None)


def test_nobody_waits_for_who_reads_the_log() -> None:
    stream = HangingReader()
    writer = LogWriter(stream)
    writer.handle(record("first"))
    assert stream.asked.wait(20), "nothing was written"
    for number in range(log_writer.LINES + 5):
        writer.handle(record(f"line {number}"))  # returns, though nothing is read
    stream.reads.set()
    while writer._lines.unfinished_tasks:
        writer.flush()
    lines = stream.getvalue().splitlines()
    assert lines[:3] == ["first", "5 lines of the log were dropped before the next one", "line 0"]
    assert lines[-1] == f"line {log_writer.LINES - 1}"


def test_a_stream_that_is_gone_ends_nothing() -> None:
    stream = io.StringIO()
    writer = LogWriter(stream)
    stream.close()
    writer.handle(record("lost"))
    writer.flush()
    assert not writer._lines.unfinished_tasks


def test_grpcs_own_lines_quote_nothing() -> None:
    for text in ("Invalid encoding on b'Bearer secret'", "Unexpected [ValueError('secret')] raised by servicer method"):
        said = record(text, "grpc._cython.cygrpc")
        assert logs._without_contents(said) and "secret" not in said.getMessage()
        assert said.getMessage().startswith("gRPC reports: ")
