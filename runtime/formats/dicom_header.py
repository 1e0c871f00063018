"""Read some attributes of a DICOM file's header, within bounds: a small file can state, or inflate to, a very large header."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from typing import BinaryIO

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset, read_preamble
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

MOST_HEADER = 16 << 20  # bytes before the pixels that are read; a deflated data set is inflated as far


def read_attributes(file: BinaryIO, keywords: Sequence[str], force: bool = False) -> tuple[Dataset, UID]:
    """Read attributes of a file; returns those that it has, and its transfer syntax, empty if it states none.

    Args:
        file: at its start.
        keywords: of the attributes.
        force: read a file without a preamble, too; one without a meta header is read as its first element is written.

    Raises:
        Exception: of any kind, from the parser: the file is damaged, or no DICOM. Its text may quote the patient.
    """
    tags = [Tag(keyword) for keyword in (*keywords, "SpecificCharacterSet", "TransferSyntaxUID")]
    last = max(tags)

    def behind_header(tag: BaseTag, vr: str | None, length: int) -> bool:
        return tag > last

    read_preamble(file, force=force)
    meta = FileMetaDataset(read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 0x0002))
    syntax = UID(str(meta.get("TransferSyntaxUID", "")))
    if syntax == DeflatedExplicitVRLittleEndian:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(MOST_HEADER), MOST_HEADER)
    else:
        content = file.read(MOST_HEADER)
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    if not syntax:
        implicit, little = not content[4:6].isalpha(), int.from_bytes(content[:2], "little") < 0x0400
    dataset = read_dataset(
        io.BytesIO(content),
        implicit,
        little,
        stop_when=behind_header,
        specific_tags=list(tags),
    )
    return dataset, syntax
