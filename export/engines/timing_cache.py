"""TensorRT's timing cache: what was measured while one engine was built is not measured again for the next."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echovlm_edge.export.engines.tensorrt_module import TensorRT


def default_folder() -> Path:
    """Return `echovlm-edge` in the user's cache folder (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "echovlm-edge"


@dataclass(frozen=True)
class TimingCache:
    """A file for each version of TensorRT in `folder`; TensorRT itself ignores what another device has measured.

    TensorRT-RTX measures nothing when it builds, so it has none.
    """

    folder: Path | None = None

    def load(self, trt: TensorRT, config: Any) -> None:
        """Give a build what earlier ones have measured; an unreadable file is an empty one."""
        if trt.name != "tensorrt":
            return
        known = b""
        with contextlib.suppress(OSError):
            known = self._file(trt).read_bytes()
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)

    def save(self, trt: TensorRT, config: Any) -> None:
        """Keep what a build has measured; a folder that cannot be written costs the next build time, and nothing else."""
        if trt.name != "tensorrt":
            return
        file = self._file(trt)
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".{os.getpid()}")
            partial.write_bytes(bytes(config.get_timing_cache().serialize()))
            partial.replace(file)

    def _file(self, trt: TensorRT) -> Path:
        return (self.folder or default_folder()) / f"tensorrt-{trt.version}.timing"
