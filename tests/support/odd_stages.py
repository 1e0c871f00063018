"""Stages of a check that go wrong, each in its own way; `stages.run_stage` starts them by name."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from benchmarks.gpu_check.figures import DeviceTest, TestFigures
from benchmarks.gpu_check.setting import LeftOut, Setting
from echovlm_edge.runtime.contracts.errors import NotPossibleHere

Keep = Callable[[TestFigures], None]
ONE = TestFigures((DeviceTest("test_one", "passed", 0.5),))


def works(setting: Setting, keep: Keep) -> None:
    keep(ONE)


def refuses(setting: Setting, keep: Keep) -> None:
    keep(ONE)
    raise NotPossibleHere("The disk is full: make room.")


def leaves_out(setting: Setting, keep: Keep) -> None:
    raise LeftOut("There is no PyTorch here.")


def fails(setting: Setting, keep: Keep) -> None:
    keep(ONE)
    raise KeyError("present.0\nand more")


def crashes(setting: Setting, keep: Keep) -> None:
    keep(ONE)
    os.abort()


def hangs(setting: Setting, keep: Keep) -> None:
    keep(ONE)
    time.sleep(600)
