"""Recognize a DICOM file by its first bytes; without pydicom, which a client that sends only pictures does not need."""

from __future__ import annotations

import struct

HEAD_BYTES = 144  # what `looks_like_dicom` needs
# The first elements of a data set that begins with group 0008: its length, Length to End, Specific Character Set,
# Language Code, Image Type, dates of the instance, SOP Class and SOP Instance.
FIRST_ELEMENTS = (0x0000, 0x0001, 0x0005, 0x0006, 0x0008, 0x0012, 0x0013, 0x0014, 0x0016, 0x0018)
SHORT_VALUES = (b"AE", b"AS", b"CS", b"DA", b"DT", b"IS", b"LO", b"SH", b"TM", b"UI", b"UL")
LONGEST_FIRST_VALUE = 1024


def looks_like_dicom(head: bytes) -> bool:
    """Check whether a file is DICOM, by its first HEAD_BYTES.

    It begins with a preamble (PS3.10 7.1), with file meta information without a preamble, or, as older devices and archives write
    it, directly with a little-endian data set whose first group is 0008.
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
    if len(following) < 4:  # the second element is beyond `head`
        return explicit
    next_group, next_element = struct.unpack("<HH", following)
    return next_group == 0x0008 and next_element > element
