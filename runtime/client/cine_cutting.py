"""Cut a DICOM cine to the frames that are asked for, so that a few megabytes are sent instead of hundreds.

This needs pydicom, but neither numpy nor a decoder: frames stay encoded as they are. The header is kept, so that a cut file gives
the same pictures and the same errors as the whole one.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.image_path import SentImage
from echovlm_edge.runtime.contracts.request import ImageInput, OriginalFrames
from echovlm_edge.runtime.formats.media_types import DICOM, sniff
from echovlm_edge.runtime.formats.video_formats import HEAD_BYTES

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from echovlm_edge.runtime.formats.dicom_pixel_data import PixelData

PIXEL_DATA = 0x7FE00010
LONGEST_ELEMENT = 16 << 20  # bytes; a longer one, such as a vendor's raw data, is not read and not sent
# Transfer syntaxes that are cut: uncompressed ones, and those in which each frame is a codestream of its own (PS3.5 annex A): JPEG,
# JPEG-LS, JPEG 2000, HTJ2K, JPEG XL, run lengths, deflated frames. A video, or a deflated data set, is one stream.
STILL_FRAMES = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.8.1",
)
JPEG_FAMILY, VIDEO = "1.2.840.10008.1.2.4.", "1.2.840.10008.1.2.4.10"  # MPEG-2, H.264 and HEVC: .100 to .108
# Attributes about frames that are left out, or that no picture needs.
DROPPED = (
    "RepresentativeFrameNumber",
    "StartTrim",
    "StopTrim",
    "FrameTimeVector",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "EncapsulatedPixelDataValueTotalLength",
)


def cut_cine(image: SentImage) -> ImageInput | None:
    """Cut out the chosen frames of a cine as a DICOM file in memory; None if the file is to be sent as it is.

    It is sent as it is if it is a single frame, a video, not DICOM, unreadable or interrupted (the server says so), if all frames
    are chosen, or if pydicom is not installed.

    Raises:
        InvalidInput: the file cannot be opened, or lacks a frame that was asked for.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError:
        return None
    with image.open() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of oddities; the server decides about them
        if sniff(file.read(HEAD_BYTES)) != DICOM:
            return None
        try:
            return _cut(file, image)
        except InvalidInput:
            raise
        except Exception:  # damaged bytes can raise anything in the parser; the server will name the damage
            return None


def _cut(file: BinaryIO, image: SentImage) -> ImageInput | None:
    from pydicom import dcmread

    from echovlm_edge.runtime.formats.dicom_frames import choose_frames, read_cine
    from echovlm_edge.runtime.formats.dicom_pixel_data import locate

    if not _has_still_frames(file):
        return None
    file.seek(0)
    header = dcmread(file, stop_before_pixels=True, force=True, defer_size=LONGEST_ELEMENT)
    try:
        pixels = locate(file, header, image.name)
    except InvalidInput:
        return None
    if pixels.stated == 1 or pixels.count != pixels.stated or header.get("BitsAllocated", 0) == 1:
        return None
    cine = read_cine(header, pixels.count, pixels.stated)
    # Without a limit: the server has one.
    chosen = choose_frames(image.name, pixels.count, image.selection, sys.maxsize, cine)
    if len(chosen) >= pixels.count or not _reduced(header, chosen, pixels.count):
        return None
    _put_frames(header, pixels, chosen)
    header.preamble = bytes(128)
    written = io.BytesIO()
    header.save_as(written)
    return ImageInput(
        written.getvalue(),
        image.media_type,
        image.name,
        image.selection,
        image.crop_to_regions,
        OriginalFrames(tuple(chosen), pixels.stated),
    )


def _has_still_frames(file: BinaryIO) -> bool:
    """Tell by the file meta information alone, as pydicom would inflate all of a deflated data set."""
    from pydicom.filereader import read_dataset, read_preamble

    file.seek(0)
    read_preamble(file, force=True)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    syntax = str(meta.get("TransferSyntaxUID", "")).strip(" \0")
    return syntax in STILL_FRAMES or (syntax.startswith(JPEG_FAMILY) and not syntax.startswith(VIDEO))


def _reduced(header: Dataset, chosen: Sequence[int], count: int) -> bool:
    """Remove from a header what belongs to other frames or is not needed; False if that cannot be told apart."""
    from pydicom.dataelem import RawDataElement

    for tag in list(header.keys()):
        element: object = header.get_item(tag, keep_deferred=True)
        left_out = isinstance(element, RawDataElement) and element.length > LONGEST_ELEMENT
        if left_out and tag == 0x52009230:
            return False
        if left_out or tag.is_private or tag.group & 0xFF00 in (0x5000, 0x6000):  # curves and overlays
            del header[tag]
    for keyword in DROPPED:
        if keyword in header:
            delattr(header, keyword)
    groups = header.get("PerFrameFunctionalGroupsSequence", None)
    if groups:
        if len(groups) != count:
            return False
        header.PerFrameFunctionalGroupsSequence = [groups[index] for index in chosen]
    header.NumberOfFrames = len(chosen)
    return True


def _put_frames(header: Dataset, pixels: PixelData, chosen: Sequence[int]) -> None:
    from pydicom.encaps import encapsulate

    frames = (pixels.read(index) for index in chosen)
    if pixels.encapsulated:
        header.add_new(PIXEL_DATA, "OB", encapsulate(list(frames)))
        header[PIXEL_DATA].is_undefined_length = True
    else:
        # OB keeps the order of the bytes, which OW would swap in big endian (PS3.5 7.3). pydicom copies a buffer piece by piece;
        # given bytes, it would hold them three times.
        vr = "OB" if header.BitsAllocated <= 8 else "OW"
        header.add_new(PIXEL_DATA, vr, io.BytesIO(b"".join(frames)))
