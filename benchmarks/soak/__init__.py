"""A server, or a DICOM node, under load for minutes."""
