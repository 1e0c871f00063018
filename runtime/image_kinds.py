"""Which kind of image file it is, by its first bytes: names and extensions are not gone by."""

from __future__ import annotations

HEAD_BYTES = 132
KINDS = "DICOM, PNG, JPEG, BMP, TIFF, WebP, GIF, MP4 or AVI"
DICOM = "application/dicom"

_STARTS = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
}
_IN_RIFF = {b"WEBP": "image/webp", b"AVI ": "video/x-msvideo"}
# Pictures in a container like MP4's, which begins with a box that names its brand (ISO/IEC 14496-12 4.3).
_PICTURE_BRANDS = (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis")
_BITMAP_HEADERS = tuple(length.to_bytes(4, "little") for length in (12, 40, 52, 56, 64, 108, 124))
# A file meta information group whose preamble was left out: its first element is one of these.
_FILE_META = (b"\x02\0\0\0UL", b"\x02\0\x01\0OB", b"\x02\0\x02\0UI", b"\x02\0\x03\0UI", b"\x02\0\x10\0UI")


def kind_of(head: bytes) -> str:
    """The media type of a file that begins with `head` (HEAD_BYTES of it); empty for none that can be sent."""
    if is_dicom(head):
        return DICOM
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF":
        return _IN_RIFF.get(head[8:12], "")
    if head[4:8] == b"ftyp" and head[8:12] not in _PICTURE_BRANDS:
        return "video/mp4"
    if head[:2] == b"BM" and head[14:18] in _BITMAP_HEADERS:
        return "image/bmp"
    return ""


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins with `head` (HEAD_BYTES of it) is DICOM, with its preamble or without."""
    return head[128:132] == b"DICM" or head.startswith(_FILE_META)
