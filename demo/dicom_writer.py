"""Write simulated frames as DICOM: Ultrasound Image Storage with a calibrated B-mode region."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid

from demo.acquisition import LEFT, PICTURE, TOP
from demo.truth import Truth

CENTIMETRES = 3  # PhysicalUnitsXDirection, PS3.3 C.8.5.5.1.1


def dicom_bytes(image: NDArray[np.uint8], truth: Truth, seed: int, number: int = 1) -> bytes:
    """Make a file of one gray frame [height, width], the study's `number`th; its patient is clearly marked as simulated."""
    instance = [str(seed)] if number == 1 else [str(seed), str(number)]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UltrasoundImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["echovlm-demo", "instance", *instance])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["echovlm-demo", "study", str(seed)])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["echovlm-demo", "series", str(seed)])
    dataset.PatientName, dataset.PatientID = "SIMULATED^STUDY", f"SIMULATED-{seed}"
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20260101", "000000", str(seed), ""
    dataset.ReferringPhysicianName = ""
    dataset.Modality, dataset.Manufacturer = "US", "EchoVLM Edge simulator"
    dataset.ImageComments = "Simulated image without medical value"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, number
    dataset.Laterality = {"left": "L", "right": "R"}[truth.side.value] if truth.side else ""
    dataset.BodyPartExamined = truth.region.value.upper()
    dataset.PatientOrientation = ""
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.Rows, dataset.Columns = image.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.LossyImageCompression = "00"
    dataset.SequenceOfUltrasoundRegions = [_region(image.shape, truth)]
    dataset.PixelData = image.tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _region(shape: tuple[int, ...], truth: Truth) -> Dataset:
    """The region is the whole frame: the model also reads the ruler and the body mark, so they must not be cropped."""
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = shape[1] - 1, shape[0] - 1
    region.ReferencePixelX0, region.ReferencePixelY0 = LEFT + PICTURE // 2, TOP
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = CENTIMETRES
    region.ReferencePixelPhysicalValueX = region.ReferencePixelPhysicalValueY = 0.0
    region.PhysicalDeltaX = region.PhysicalDeltaY = truth.mm_per_pixel / 10
    return region
