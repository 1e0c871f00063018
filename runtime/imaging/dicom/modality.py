"""Note that a DICOM file says it is not ultrasound (Modality, PS3.3 C.7.3.1.1.1, and the SOP class).

A file is shown all the same: the note reaches whoever reads the report. Neither attribute says anything if it is empty, or its value is
not a defined one, or is one of devices that file ultrasound too: Modality OT (other), secondary captures and photographs.
"""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.uid import UID_dictionary

from echovlm_edge.runtime.formats.dicom_attributes import text

# All defined terms of Modality but those of ultrasound (US, IVUS, BDUS, and EC, CD, DD, which US has replaced) and OT.
# fmt: off
OTHERS = frozenset({
    "AR", "ASMT", "AU", "BI", "BMD", "CF", "CP", "CR", "CS", "CT", "CTPROTOCOL", "DF", "DG", "DM", "DMS", "DOC", "DS", "DX", "ECG",
    "EEG", "EMG", "EOG", "EPS", "ES", "FA", "FID", "FS", "GM", "HC", "HD", "IO", "IOL", "IVOCT", "KER", "KO", "LEN", "LP", "LS",
    "M3D", "MA", "MG", "MR", "MS", "NM", "OAM", "OCT", "OP", "OPM", "OPR", "OPT", "OPTBSV", "OPTENF", "OPV", "OSS", "PA", "PLAN",
    "POS", "PR", "PT", "PX", "REG", "RESP", "RF", "RG", "RTDOSE", "RTIMAGE", "RTINTENT", "RTPLAN", "RTRAD", "RTRECORD", "RTSEGANN",
    "RTSTRUCT", "RWV", "SEG", "SM", "SMR", "SR", "SRF", "ST", "STAIN", "TEXTUREMAP", "TG", "VA", "VF", "XA", "XAPROTOCOL", "XC",
})
# fmt: on
SILENT_CLASSES = ("Ultrasound", "Enhanced US", "Secondary Capture", "Photographic")


def not_ultrasound(dataset: Dataset) -> str:
    """Return the note; empty where the file says that it is ultrasound, or does not say what it is."""
    modality = text(dataset, "Modality")
    said = f"Modality {modality}" if modality in OTHERS else _other_class(text(dataset, "SOPClassUID"))
    return f"The file says {said}; EchoVLM was trained on ultrasound." if said else ""


def _other_class(uid: str) -> str:
    """The name of a standard SOP class that is no ultrasound; else empty."""
    name, kind, *_ = UID_dictionary.get(uid, ("", ""))
    return "" if kind != "SOP Class" or any(silent in name for silent in SILENT_CLASSES) else name
