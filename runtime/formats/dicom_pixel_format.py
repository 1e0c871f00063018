"""The pixel format of a DICOM image, from its Image Pixel module (PS3.3 C.7.6.3)."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.dataset import Dataset

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.formats.dicom_attributes import text, value, whole

GREY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "XYB")
BITS_ALLOCATED = (1, 8, 16, 32)


@dataclass(frozen=True)
class PixelFormat:
    """The attributes that define how pixels are stored.

    Attributes:
        rows, columns: the frame's size in pixels.
        samples: per pixel, 1 or 3.
        photometric: one of GREY, PALETTE and COLOUR.
        allocated: bits of a sample's cell.
        stored: how many bits of the cell are used.
        high_bit: the highest of the used bits, counted from 0.
        signed: whether samples are two's complement.
        planar: whether all samples of a colour stand together, instead of all samples of a pixel.
    """

    rows: int
    columns: int
    samples: int
    photometric: str
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    planar: bool

    @property
    def pixels(self) -> int:
        """Pixels of a frame."""
        return self.rows * self.columns

    @property
    def frame_bits(self) -> int:
        """Bits of an uncompressed frame that holds every sample."""
        return self.pixels * self.samples * self.allocated

    @property
    def halved_chroma(self) -> bool:
        """Whether an uncompressed frame may hold two pixels in four samples (PS3.3 C.7.6.3.1.2, YBR_FULL_422)."""
        return self.photometric == "YBR_FULL_422" and self.allocated == 8 and not self.columns % 2


def read_pixel_format(name: str, dataset: Dataset) -> PixelFormat:
    """Read the pixel format from a header. A missing or absurd attribute that can have only one value gets that value.

    Raises:
        InvalidInput: an attribute is missing, or of a value that is not supported; the sentence names it.
    """
    photometric = text(dataset, "PhotometricInterpretation")
    if photometric not in (*GREY, PALETTE, *COLOUR):
        if photometric:
            raise InvalidInput(
                f"{name} has photometric interpretation {shown(photometric)}, which is not supported: "
                "send it as RGB or MONOCHROME2."
            )
        raise _unusable(name, dataset, "PhotometricInterpretation")
    rows, columns, allocated = (_positive(name, dataset, key) for key in ("Rows", "Columns", "BitsAllocated"))
    if allocated not in BITS_ALLOCATED:
        raise InvalidInput(f"{name} has {allocated} BitsAllocated: 1, 8, 16 and 32 are supported.")
    stored = whole(dataset, "BitsStored") or 0
    if not 1 <= stored <= allocated:
        stored = allocated
    high_bit = whole(dataset, "HighBit")
    if high_bit is None or not stored - 1 <= high_bit < allocated:
        high_bit = stored - 1
    colour = photometric in COLOUR
    return PixelFormat(
        rows=rows,
        columns=columns,
        samples=_samples(name, dataset, photometric),
        photometric=photometric,
        allocated=allocated,
        stored=stored,
        high_bit=high_bit,
        signed=not colour and stored > 1 and whole(dataset, "PixelRepresentation") == 1,
        planar=colour and whole(dataset, "PlanarConfiguration") == 1,
    )


def shown(found: object) -> str:
    """Make a technical value of the file safe to show in a sentence."""
    words = str(found)
    return words if words.isascii() and words.isprintable() and len(words) <= 100 else "unreadable"


def _samples(name: str, dataset: Dataset, photometric: str) -> int:
    meant = 3 if photometric in COLOUR else 1
    stated = whole(dataset, "SamplesPerPixel")
    if stated in (1, 3) and stated != meant:
        raise InvalidInput(
            f"{name} has {stated} SamplesPerPixel, which {photometric} cannot have: send a correct file."
        )
    return meant


def _positive(name: str, dataset: Dataset, keyword: str) -> int:
    found = whole(dataset, keyword)
    if found is None or found < 1:
        raise _unusable(name, dataset, keyword)
    return found


def _unusable(name: str, dataset: Dataset, keyword: str) -> InvalidInput:
    if value(dataset, keyword) is None:
        return InvalidInput(f"{name} lacks the DICOM attribute {keyword}: send a complete file.")
    return InvalidInput(f"{name} has a DICOM attribute {keyword} that cannot be meant: send a correct file.")
