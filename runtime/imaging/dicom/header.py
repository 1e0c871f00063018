"""A DICOM file to its data set without pixels: with or without preamble and meta information, deflated or not."""

from __future__ import annotations

import io
import struct
import zlib
from typing import BinaryIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import dcmread, read_dataset, read_preamble
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from echovlm_edge.runtime.errors import InvalidInput

HEAD_BYTES = 144  # what `looks_like_dicom` needs
MOST_INFLATED = 256 << 20  # bytes of a deflated data set: as large as a file may be
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
# The first elements of a data set that begins with group 0008: its length, Length to End, Specific Character Set,
# Language Code, Image Type, dates of the instance, SOP Class and SOP Instance.
FIRST_ELEMENTS = (0x0000, 0x0001, 0x0005, 0x0006, 0x0008, 0x0012, 0x0013, 0x0014, 0x0016, 0x0018)
SHORT_VALUES = (b"AE", b"AS", b"CS", b"DA", b"DT", b"IS", b"LO", b"SH", b"TM", b"UI", b"UL")
LONGEST_FIRST_VALUE = 1024


def looks_like_dicom(head: bytes) -> bool:
    """Tell a DICOM file by its first HEAD_BYTES.

    That is a preamble (PS3.10 7.1); or file meta information without one; or a data set alone that begins with group 0008,
    in little endian, as older devices and archives write it.
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 8:
        return False
    group, element = struct.unpack("<HH", head[:4])
    explicit = head[4:6] in SHORT_VALUES
    if group == 0x0002:
        return element in (0x0000, 0x0001, 0x0002, 0x0010) and (explicit or head[4:6] == b"OB")
    if group != 0x0008 or element not in FIRST_ELEMENTS:
        return False
    length = struct.unpack("<H", head[6:8])[0] if explicit else struct.unpack("<L", head[4:8])[0]
    if length % 2 or length > LONGEST_FIRST_VALUE:
        return False
    following = head[8 + length : 12 + length]
    if len(following) < 4:  # the second element is out of sight
        return explicit
    next_group, next_element = struct.unpack("<HH", following)
    return next_group == 0x0008 and next_element > element


def read_header(file: BinaryIO, name: str) -> tuple[BinaryIO, Dataset]:
    """Read a file up to its pixels.

    Returns:
        The file that the pixels are in, standing at their tag, and the data set. A deflated data set is inflated to a file in memory.

    Raises:
        InvalidInput: it cannot be read as DICOM, or inflates to over MOST_INFLATED bytes.
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
    """The file meta information, read alone: pydicom would inflate what follows it, whatever its size."""
    read_preamble(file, force=True)
    return FileMetaDataset(read_dataset(file, False, True, stop_when=_behind_meta))


def _behind_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag >> 16 != 0x0002


def _at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag in PIXELS


def _inflated(file: BinaryIO, meta: FileMetaDataset, name: str) -> tuple[BinaryIO, Dataset]:
    """PS3.5 A.5: the data set behind the meta information is one raw deflate stream."""
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
