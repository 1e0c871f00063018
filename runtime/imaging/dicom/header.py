"""Read a DICOM file's data set without the pixels: with or without preamble and meta information, deflated or not."""

from __future__ import annotations

import io
import zlib
from typing import BinaryIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import dcmread, read_dataset, read_preamble
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from echovlm_edge.runtime.contracts.errors import InvalidInput

MOST_INFLATED = 256 << 20  # bytes of a deflated data set: as large as a file may be
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)


def read_header(file: BinaryIO, name: str) -> tuple[BinaryIO, Dataset]:
    """Read a file up to its pixels.

    Returns:
        The file with the pixels, positioned at their tag, and the data set. A deflated data set is inflated to a file in memory.

    Raises:
        InvalidInput: the file cannot be read as DICOM, or inflates to over MOST_INFLATED bytes.
    """
    try:
        meta = _file_meta(file)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            return _inflated(file, meta, name)
        file.seek(0)
        dataset: Dataset = dcmread(file, stop_before_pixels=True, force=True)
        return file, dataset
    except (InvalidInput, MemoryError):
        raise
    except Exception:  # the parser raises whatever the damaged bytes lead it to; its text may quote the patient
        raise InvalidInput(f"{name} cannot be read as DICOM: it is truncated or damaged.") from None


def _file_meta(file: BinaryIO) -> FileMetaDataset:
    """Read only the file meta information: pydicom would inflate what follows it, whatever its size."""
    read_preamble(file, force=True)
    return FileMetaDataset(read_dataset(file, False, True, stop_when=_behind_meta))


def _behind_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag >> 16 != 0x0002


def _at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag in PIXELS


def _inflated(file: BinaryIO, meta: FileMetaDataset, name: str) -> tuple[BinaryIO, Dataset]:
    """Inflate the data set after the meta information, which is one raw deflate stream (PS3.5 A.5)."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = stream.decompress(file.read(), MOST_INFLATED)
    if stream.unconsumed_tail:
        raise InvalidInput(
            f"{name} inflates to more than {MOST_INFLATED:,} bytes: send it in another transfer syntax, or fewer frames."
        )
    inflated = io.BytesIO(plain)
    dataset = read_dataset(inflated, False, True, stop_when=_at_pixels)
    dataset.file_meta = meta
    return inflated, dataset
