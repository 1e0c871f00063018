"""A tiny sample file of every encoding, to load decoders before the confinement and to tell a broken decoder from a broken file."""

from __future__ import annotations

import codecs
import io
import zlib
from base64 import b64decode
from contextlib import suppress
from functools import cache
from importlib.util import find_spec

import numpy as np
from PIL import Image
from pydicom import Dataset, dcmwrite
from pydicom.charset import python_encoding
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import (
    HEVCM10P51,
    HEVCMP51,
    HTJ2K,
    JPEG2000,
    MPEG2MPHL,
    MPEG2MPML,
    MPEG4HP41,
    MPEG4HP41BD,
    MPEG4HP42STEREO,
    MPEG4HP422D,
    MPEG4HP423D,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    UltrasoundImageStorage,
)

from echovlm_edge.runtime.contracts.request import ImageInput
from echovlm_edge.runtime.formats.media_types import PICTURES, TIFF
from echovlm_edge.runtime.imaging import video
from echovlm_edge.runtime.imaging.dicom import reading

RAMP = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 4  # the picture of all but three samples

_JPEG = b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1xeXBk"
    "eFxlZ2P/wAALCAAgACABAREA/8QAFQABAQAAAAAAAAAAAAAAAAAABQb/xAAWEAEBAQAAAAAAAAAAAAAAAAADAGH/2gAIAQEAAD8AjQHJAByQAckA"
    "HKfAckAHJAByQAcp8ByQAckAHJABynwHJAByQAckAHL/2Q=="
)
_JPEG_LOSSLESS = (  # grey all over: every difference from its neighbour is the code of one bit
    b64decode("/9j/wwALCAAgACABAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAAP/aAAgBAQABAAA=") + bytes(128) + b"\xff\xd9"
)
_JPEG_LS = b64decode(
    "/9j/6AAgU1BJRkYAAgAAAQAAACAAAAAgCggGAQAAASwAAAEs/+gACAAAAAH/2P/3AAsIACAAIAEBEQD/2gAIAQEAAAAAnd1/df7bb/9//35CMm2l"
    "VVf/eT//f/9t/3//f0//f/9+/3//f+//f/9+/3//f8//f/99/3//f7//f/93/3//fv9//3/f/3//e/9//39//3//b/9//3//f/9//3//f/9//3//"
    "f/9//3//f/9//3//f/9//3//f/9//3//f/9//3//f/9//3//f/9//3//f/9//3//f/98/9k="
)
_JPEG_2000 = b64decode(  # the ramp in steps of four pixels: the smallest that has five levels of wavelets
    "/0//UQApAAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAABBwEB/1IADAAAAAEABQQEAAH/XAATQEBISFBISFBISFBISFBISFD/ZAAl"
    "AAFDcmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjL/kAAKAAAAAAB4AAH/k8+0BAfH2gUfaBAEcQRxw+oEh9QIDQH93ws9gQfB84WD5woi"
    "GghioQN/3VwTwPkHQPkGgBFQUi1npFLg9KQA8U9/EVBUBVmfPKNAG4VXN8D5BcD5BQAXKYygWNgwq3D3fwwiZfgoy9gEUX//2Q=="
)
_HTJ2K = b64decode(
    "/0//UQApQAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAABBwEB/1AACAACAAAAAv9SAAwAAgABAAMEBEAB/1wADSBIUFBQUFBQSEhI"
    "/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAIAAAf+TwC1Q/z+//3+vkX/th0AiSf4AvtQQBzcAwBUQBUhCCPGqcAJ1AKIQ4sAAAey2"
    "AMAVkAVoAAAAAOfAp6enwngAEAAAAP798nv3yey4AMAtCAWiqqqqqvn/Kenp6enp6eJ8AFZVVVX/eGV7917917917L0A/9k="
)
_JPEG_XL = b64decode("/wpHQFDcCAgEAQB4AEsoNlYfvCsomBBRoMh4McbpcAH4AQAALwAEJmCpBA==")
_RLE = bytes((1, 0, 0, 0, 64)) + bytes(59)  # one segment, of 128 literal bytes at a time
_RLE += b"".join(b"\x7f" + RAMP.tobytes()[at : at + 128] for at in range(0, RAMP.size, 128))
_DEFLATER = zlib.compressobj(wbits=-15)
_DEFLATED = _DEFLATER.compress(RAMP.tobytes()) + _DEFLATER.flush()
# One frame each, without a container.
_MPEG_2 = b64decode(
    "AAABswIAIBP//+AYAAABtRSKAAEAAAAAAbgACABAAAABAAAP//gAAAG1j//zQYAAAAEBU/k5Zd3Cy6Fl3bLLiLhZd2yy6Fl3cLLiIAAAAQJT88WX"
    "dssuhZd3Cy4i4WXdssuhZd3Cy4iA"
)
_MPEG_4 = b64decode(
    "AAABsAEAAAG1iRMAAAEAAAABIADEjYgAzQEEBBRDAAABskxhdmM1OS4zNy4xMDAAAAGzABAHAAABthBhVhY+LTnxac+LTnxb9nPi058WnPi078W+"
    "AADKWQ+LTnxac+LTvxb9nfi058WnPi058W+/"
)
_H264 = b64decode("AAAAAWdkAAqscgRJaEAAAAMAQAAADIPEiWEYAAAAAWjoQ4RLIsAAAAFliIEABD9RV39J7/ydT2VMz9elqc2bmiqmew==")
_HEVC = (
    b64decode(
        "AAAAAUABDAH//wFgAAADAJAAAAMAAAMAHpWYCQAAAAFCAQEBYAAAAwCQAAADAAADAB6gQghZZWa5MrmgIAAAAwAgAAADAyEAAAABRAHBc9CJAAAB"
        "KAGvCWDyXSAonuY5S92prR/A"
    )
    + b"\0\0\1\x48\1"
)  # an end of sequence, without which the last picture is not taken for whole

# Not in pydicom yet (PS3.5 A.4.13, A.4.14).
DEFLATED_IMAGE_FRAME = UID("1.2.840.10008.1.2.8.1")
JPEG_XL_LOSSLESS, JPEG_XL_RECOMPRESSION, JPEG_XL = (UID(f"1.2.840.10008.1.2.4.11{last}") for last in range(3))
VIDEO_STREAMS = {"video/mpeg": _MPEG_2, "video/mp4v-es": _MPEG_4, "video/h264": _H264, "video/h265": _HEVC}
_UNCOMPRESSED = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
_COMPRESSED = {
    RLELossless: _RLE,
    JPEGBaseline8Bit: _JPEG,
    JPEGExtended12Bit: _JPEG.replace(b"\xff\xc0", b"\xff\xc1"),  # eight bits are allowed there too
    JPEGLossless: _JPEG_LOSSLESS,
    JPEGLosslessSV1: _JPEG_LOSSLESS,
    JPEGLSLossless: _JPEG_LS,
    JPEGLSNearLossless: _JPEG_LS,
    JPEG2000Lossless: _JPEG_2000,
    JPEG2000: _JPEG_2000,
    HTJ2KLossless: _HTJ2K,
    HTJ2KLosslessRPCL: _HTJ2K,
    HTJ2K: _HTJ2K,
}
_DEFLATED_FRAMES = {DEFLATED_IMAGE_FRAME: _DEFLATED}
_JPEG_XL_FRAMES = dict.fromkeys((JPEG_XL_LOSSLESS, JPEG_XL_RECOMPRESSION, JPEG_XL), _JPEG_XL)
_VIDEO_FRAMES = {
    **dict.fromkeys((MPEG2MPML, MPEG2MPHL), _MPEG_2),
    **dict.fromkeys((MPEG4HP41, MPEG4HP41BD, MPEG4HP422D, MPEG4HP423D, MPEG4HP42STEREO), _H264),
    **dict.fromkeys((HEVCMP51, HEVCM10P51), _HEVC),
}
_STREAMS = {**_COMPRESSED, **_DEFLATED_FRAMES, **_JPEG_XL_FRAMES, **_VIDEO_FRAMES}
# Encodings that need another package are listed where that is installed; without it, an error still names the encoding.
_WITH_VIDEO = (*VIDEO_STREAMS, *_VIDEO_FRAMES) if find_spec("av") else ()
_WITH_JPEG_XL = tuple(_JPEG_XL_FRAMES) if find_spec("pillow_jxl") else ()
ENCODINGS: tuple[str, ...] = (
    *PICTURES,
    *_UNCOMPRESSED,
    *_COMPRESSED,
    *_DEFLATED_FRAMES,
    *_WITH_JPEG_XL,
    *_WITH_VIDEO,
)


@cache
def sample(encoding: str) -> bytes:
    """Make a sample file of one of `ENCODINGS`, a media type or a transfer syntax."""
    if encoding in VIDEO_STREAMS:
        return VIDEO_STREAMS[encoding]
    if encoding in PICTURES:
        file = io.BytesIO()
        picture = Image.fromarray(RAMP)
        picture.save(file, PICTURES[encoding], **({"compression": "tiff_lzw"} if encoding == TIFF else {}))
        return file.getvalue()
    syntax = UID(encoding)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = UltrasoundImageStorage
    meta.MediaStorageSOPInstanceUID = UID("2.25.1")
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows = dataset.Columns = 32
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    if syntax in _VIDEO_FRAMES:
        dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "YBR_PARTIAL_420", 3
        dataset.PlanarConfiguration, dataset.NumberOfFrames = 0, 1
    stream = _STREAMS.get(syntax)
    dataset.PixelData = encapsulate([stream]) if stream else RAMP.tobytes()
    dataset["PixelData"].VR = "OB"
    file = io.BytesIO()
    if syntax.is_transfer_syntax:
        dataset.file_meta = meta
        dcmwrite(file, dataset, enforce_file_format=True)
    else:  # unknown to pydicom, which writes the parts of such a file
        file.write(bytes(128) + b"DICM")
        head = DicomBytesIO()
        write_file_meta_info(head, meta)
        file.write(head.getvalue())
        dcmwrite(file, dataset, implicit_vr=False, little_endian=True)
    return file.getvalue()


def decodes(encoding: str) -> bool:
    """Check whether this process can decode an encoding; where it cannot, a file of it that fails need not be damaged."""
    if encoding not in ENCODINGS:
        return False
    try:
        if encoding in PICTURES:
            Image.open(io.BytesIO(sample(encoding)), formats=(PICTURES[encoding],)).load()
        elif encoding in VIDEO_STREAMS:
            list(video.decode(io.BytesIO(sample(encoding)), encoding, [0]))
        else:
            reading.decode(ImageInput(sample(encoding)), RAMP.size, 1)
    except Exception:  # as many kinds as there are ways not to be loaded
        return False
    return True


def load_decoders() -> None:
    """Run every decoder once, so that nothing is imported later; failures are ignored here and reported by `decodes`."""
    for encodings in python_encoding.values():  # of the texts in DICOM headers
        for name in (encodings,) if isinstance(encodings, str) else encodings:
            with suppress(LookupError):  # some are pydicom's own
                codecs.lookup(name)
    for encoding in ENCODINGS:
        decodes(encoding)
