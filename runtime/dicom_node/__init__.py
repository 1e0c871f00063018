"""The DICOM node: carts send frames by C-STORE, and the draft report is in PACS when the examination ends."""
