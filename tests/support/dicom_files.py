"""Tiny image files with known pixels, made for the tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid


def shipped(name: str) -> bytes:
    """Return one of the DICOM files inside the pydicom package."""
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str), f"{name} is not in this pydicom"
    return Path(path).read_bytes()


def png(width: int, height: int, seed: int = 0) -> bytes:
    """Make a PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels))


def encode(picture: Image.Image, kind: str = "PNG") -> bytes:
    """Encode a picture as a file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def ultrasound(
    pixels: NDArray[np.generic], photometric: str = "RGB", syntax: UID = ExplicitVRLittleEndian, **attributes: object
) -> FileDataset:
    """Make an ultrasound image: pixels [height, width], [height, width, 3], or [frames, …] with `NumberOfFrames` given."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = UltrasoundImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    orders = {"is_implicit_VR": syntax.is_implicit_VR, "is_little_endian": syntax.is_little_endian}
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128, **orders)
    colour = photometric in ("RGB", "YBR_FULL")
    height, width = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    bits = pixels.dtype.itemsize * 8
    dataset.SOPClassUID, dataset.SOPInstanceUID = UltrasoundImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.PatientName = "SECRET^PATIENT"
    dataset.Rows, dataset.Columns = height, width
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    if colour:
        dataset.PlanarConfiguration = 0
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<" if syntax.is_little_endian else ">")).tobytes()
    return dataset


def region(left: int, top: int, right: int, bottom: int, data_type: int = 1) -> Dataset:
    """Make one item of SequenceOfUltrasoundRegions; the far edges are inclusive."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType = 1, data_type
    item.RegionLocationMinX0, item.RegionLocationMinY0 = left, top
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = right, bottom
    return item


def saved(dataset: FileDataset) -> bytes:
    """Encode the dataset as a file."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
