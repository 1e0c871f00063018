"""Results as DICOM SR and FHIR."""
