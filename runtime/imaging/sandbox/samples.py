"""A tiny file of every encoding: it loads the decoder before that is confined, and tells a broken decoder from a broken file."""

from __future__ import annotations

import codecs
import io
from base64 import b64decode
from contextlib import suppress
from functools import cache

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.charset import python_encoding
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder, iter_pixels
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
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

PNG, JPEG = "image/png", "image/jpeg"
RAMP = np.add.outer(np.arange(8), np.arange(8)).astype(np.uint8) * 16  # what all but two of them show

_PNG = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAEElEQVR42mNkEIAAJgGKGACOGAQAwSeVywAAAABJRU5ErkJggg==")
_JPEG = b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1xeXBk"
    "eFxlZ2P/wAALCAAIAAgBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAABP/EABcQAQADAAAAAAAAAAAAAAAAAAUAIjL/2gAIAQEAAD8AOIPms//Z"
)
_JPEG_LOSSLESS = b64decode(  # grey all over: every difference from its neighbour is the code of one bit
    "/9j/wwALCAAIAAgBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAAP/aAAgBAQABAAAAAAAAAAAAAP/Z"
)
_JPEG_LS = b64decode("/9j/9wALCAAIAAgBAREA/9oACAEBAAAAAIBwHAd1tlcAgBHnGmFgCKJIe5zT2sYxi3Od3dmY1mZmZjGZVVVLVVVVUoD/2Q==")
_JPEG_2000 = b64decode(  # the ramp in steps of four pixels: the smallest that has five levels of wavelets
    "/0//UQApAAAAAAAgAAAAIAAAAAAAAAAAAAAAIAAAACAAAAAAAAAAAAABBwEB/1IADAAAAAEABQQEAAH/XAATQEBISFBISFBISFBISFBISFD/ZAAl"
    "AAFDcmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjL/kAAKAAAAAAB4AAH/k8+0BAfH2gUfaBAEcQRxw+oEh9QIDQH93ws9gQfB84WD5woi"
    "GghioQN/3VwTwPkHQPkGgBFQUi1npFLg9KQA8U9/EVBUBVmfPKNAG4VXN8D5BcD5BQAXKYygWNgwq3D3fwwiZfgoy9gEUX//2Q=="
)
_RLE = bytes((1, 0, 0, 0, 64)) + bytes(59) + bytes((63,)) + RAMP.tobytes() + b"\0"  # one segment of 64 literal bytes

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
}
ENCODINGS: tuple[str, ...] = (PNG, JPEG, *_UNCOMPRESSED, *_COMPRESSED)


@cache
def sample(encoding: str) -> bytes:
    """A file of one of `ENCODINGS`: a media type or a transfer syntax."""
    if encoding in (PNG, JPEG):
        return _PNG if encoding == PNG else _JPEG
    syntax = UID(encoding)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = UltrasoundImageStorage
    meta.MediaStorageSOPInstanceUID = UID("2.25.1")
    order = {"is_implicit_VR": syntax.is_implicit_VR, "is_little_endian": syntax.is_little_endian}
    dataset = FileDataset("", {}, preamble=bytes(128), file_meta=meta, **order)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows = dataset.Columns = 32 if _COMPRESSED.get(syntax) is _JPEG_2000 else 8
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    stream = _COMPRESSED.get(syntax)
    dataset.PixelData = encapsulate([stream]) if stream else RAMP.tobytes()
    dataset["PixelData"].VR = "OB"
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def decodes(encoding: str) -> bool:
    """Whether this process can decode an encoding: where it cannot, a file of it that fails need not be damaged."""
    if encoding not in ENCODINGS:
        try:
            return bool(get_decoder(UID(encoding)).is_available)
        except NotImplementedError:
            return False
    file = io.BytesIO(sample(encoding))
    try:
        if encoding in (PNG, JPEG):
            Image.open(file, formats=("PNG", "JPEG")).load()
        else:
            for _ in iter_pixels(dcmread(file)):
                pass
    except Exception:  # as many kinds as there are ways not to be loaded
        return False
    return True


def load_decoders() -> None:
    """Run every decoder once, so that nothing of it is imported later; what fails here is what `decodes` says of it."""
    for encodings in python_encoding.values():  # of the texts in DICOM headers
        for name in (encodings,) if isinstance(encodings, str) else encodings:
            with suppress(LookupError):  # some are pydicom's own
                codecs.lookup(name)
    for encoding in ENCODINGS:
        if not decodes(encoding) or encoding in (PNG, JPEG) or not UID(encoding).is_compressed:
            continue
        for plugin in get_decoder(UID(encoding)).available_plugins:
            with suppress(Exception):  # not each of them can do what one of them can
                list(iter_pixels(dcmread(io.BytesIO(sample(encoding))), decoding_plugin=plugin))
