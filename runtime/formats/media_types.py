"""Recognize a file's kind by its first bytes, and list the media types of each kind."""

from __future__ import annotations

from echovlm_edge.runtime.formats.dicom_first_bytes import looks_like_dicom
from echovlm_edge.runtime.formats.video_formats import container_format

DICOM = "application/dicom"
PNG, JPEG, GIF = "image/png", "image/jpeg", "image/gif"
BMP, TIFF, WEBP = "image/bmp", "image/tiff", "image/webp"
# Pillow's names of the pictures that it reads.
PICTURES = {PNG: "PNG", JPEG: "JPEG", BMP: "BMP", TIFF: "TIFF", WEBP: "WEBP", GIF: "GIF"}
# FFmpeg's names of containers and raw streams; a file's kind is reported as the first media type.
VIDEOS = {
    "mov": ("video/mp4", "video/quicktime"),
    "avi": ("video/x-msvideo", "video/vnd.avi", "video/avi"),
    "matroska": ("video/x-matroska", "video/webm"),
    "mpeg": ("video/mpeg",),
    "mpegts": ("video/mp2t", "video/mpeg"),
    "mpegvideo": ("video/mpeg",),
    "m4v": ("video/mp4v-es",),
    "h264": ("video/h264",),
    "hevc": ("video/h265",),
}
TAKEN = "a DICOM, PNG, JPEG, BMP, TIFF, WebP or GIF file, or an MP4, QuickTime, AVI, Matroska or MPEG video"
ALIASES = {BMP: (BMP, "image/x-ms-bmp")}
KINDS: dict[str, tuple[str, ...]] = {
    DICOM: (DICOM,),
    **{kind: ALIASES.get(kind, (kind,)) for kind in PICTURES},
    **VIDEOS,
}
ACCEPTED = tuple(dict.fromkeys(media_type for accepted in KINDS.values() for media_type in accepted))


def sniff(head: bytes) -> str:
    """Return a file's kind, a key of `KINDS`, by its first `video_formats.HEAD_BYTES`; empty for an unknown one."""
    if head[128:132] == b"DICM":
        return DICOM
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if head.startswith(b"\xff\xd8\xff"):
        return JPEG
    if head.startswith((b"GIF87a", b"GIF89a")):
        return GIF
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):  # the plus: BigTIFF
        return TIFF
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WEBP
    if head[:2] == b"BM" and head[6:10] == bytes(4):  # two reserved fields
        return BMP
    return container_format(head) or (DICOM if looks_like_dicom(head) else "")  # one without its preamble
