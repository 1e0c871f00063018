"""A process ends by itself and with its own exit code while an engine that nobody closed is at work."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from echovlm_edge.runtime.engine.report_engine import ReportEngine
from tests.support.waiting import wait_for

# Ends while the decoder is in a call of ONNX Runtime, which returns before the process is gone.
PROGRAM = """
import sys, threading, time
from pathlib import Path
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.request import GenerationRequest
from echovlm_edge.runtime.engine import at_exit
from echovlm_edge.runtime.engine.report_engine import ReportEngine

inside = threading.Event()

class LongTurns(OnnxRuntimeBackend):
    def turn(self, rows):
        inside.set()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            logits = super().turn(rows)
        return logits

class HangingTurns(OnnxRuntimeBackend):
    def turn(self, rows):
        inside.set()
        threading.Event().wait()

class EndsSlowly:
    def __del__(self):
        time.sleep(0.7)

kept, bundle = EndsSlowly(), Bundle(Path(sys.argv[1]))
engine = ReportEngine(bundle, {turns}(bundle, threads=1))
answer = engine.generate(GenerationRequest("Describe it. " * 250))
next(answer)
inside.wait()
time.sleep(0.1)
{end}
"""


def run(bundle: Path, turns: str, end: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.replace("{turns}", turns).replace("{end}", end)
    return subprocess.run(
        [sys.executable, "-c", program, bundle], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_process_that_forgot_to_close_its_engine_ends_as_it_wanted(golden_bundle: Path) -> None:
    ended = run(golden_bundle, "LongTurns", "sys.exit(3)")
    assert (ended.returncode, ended.stderr) == (3, "")


def test_a_turn_that_hangs_does_not_keep_the_process(golden_bundle: Path) -> None:
    ended = run(golden_bundle, "HangingTurns", "at_exit.SECONDS = 0.2")
    assert ended.returncode == 0
    assert ended.stderr == "a turn did not end within 0.2 s of the process's end\n"


@pytest.mark.parametrize("end", ["del engine, answer", "engine.close(); del engine, answer"])
def test_an_engine_that_nobody_has_any_more_still_ends_its_turn(golden_bundle: Path, end: str) -> None:
    ended = run(golden_bundle, "LongTurns", end)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_closed_engine_is_not_kept(golden_bundle: Path) -> None:
    engine = ReportEngine.open(golden_bundle, threads=1)
    kept = weakref.ref(engine._scheduler)
    engine.close()
    del engine
    wait_for(lambda: gc.collect() >= 0 and kept() is None)
