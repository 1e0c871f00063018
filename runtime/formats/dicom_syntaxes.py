"""The transfer syntaxes of DICOM files that are read: those of still pictures, and those whose pixel data is a video."""

from __future__ import annotations

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
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
    MPEGTransferSyntaxes,
    RLELossless,
)

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
ENCAPSULATED_UNCOMPRESSED = UID("1.2.840.10008.1.2.1.98")
DEFLATED_FRAME = UID("1.2.840.10008.1.2.8.1")
JPEG_XL = (UID("1.2.840.10008.1.2.4.110"), UID("1.2.840.10008.1.2.4.111"), UID("1.2.840.10008.1.2.4.112"))
CODESTREAMS = (
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEG2000Lossless,
    JPEG2000,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    HTJ2K,
)
VIDEOS = tuple(MPEGTransferSyntaxes)
EVERY = (*NATIVE, *CODESTREAMS, RLELossless, ENCAPSULATED_UNCOMPRESSED, DEFLATED_FRAME, *JPEG_XL, *VIDEOS)
