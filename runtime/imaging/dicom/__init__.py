"""DICOM files to RGB frames."""
