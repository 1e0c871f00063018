"""Generate an uncompressed colour cine of any length part by part, and measure a server's memory while it receives one."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np
import psutil
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage

ROWS, COLUMNS = 434, 1024
FRAME_BYTES = 3 * ROWS * COLUMNS


def long_cine(frames: int) -> Iterator[bytes]:
    """Yield a DICOM file with this many frames, one per part; all are black except the middle one."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    meta.MediaStorageSOPInstanceUID = UID("2.25.1")
    dataset = FileDataset("", {}, preamble=bytes(128), file_meta=meta)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = ROWS, COLUMNS, frames
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel, dataset.PlanarConfiguration = "RGB", 3, 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = b""
    dataset["PixelData"].VR = "OB"
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    yield file.getvalue()[:-4] + (frames * FRAME_BYTES).to_bytes(4, "little")  # the length, that of the pixel data
    middle = np.random.default_rng(0).integers(0, 255, FRAME_BYTES, np.uint8).tobytes()
    for frame in range(frames):
        yield middle if frame == frames // 2 else bytes(FRAME_BYTES)


class MemoryPeak:
    """Records the peak memory of a process and all its children while the context lasts, by polling.

    Pages that several of them share count once. Files in memory count whole, whether a process has mapped them or not.
    """

    def __init__(self, pid: int) -> None:
        """Start with nothing recorded."""
        self.bytes = self.files = 0
        self._process = psutil.Process(pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> MemoryPeak:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def now(self) -> int:
        """Return the bytes that are in use now."""
        processes = [self._process, *self._process.children(recursive=True)]
        files = dict[int, int]()
        taken = 0
        for process in processes:
            with suppress(OSError):  # it has ended meanwhile
                taken += sum(_shares(process.pid))
                files |= _memory_files(process.pid)
        self.files = max(self.files, sum(files.values()))
        return taken + sum(files.values())

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.bytes = max(self.bytes, self.now())


def _shares(pid: int) -> Iterator[int]:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Pss_Anon:", "Pss_File:")):
            yield 1024 * int(line.split()[1])


def _memory_files(pid: int) -> dict[int, int]:
    """Return the sizes by inode."""
    found = dict[int, int]()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            if "memfd:image" in str(descriptor.readlink()):
                status = descriptor.stat()
                found[status.st_ino] = status.st_size
    return found
