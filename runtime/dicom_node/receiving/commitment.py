"""Storage Commitment (PS3.4 annex J) is refused by name: the node hands instances to nobody, and empties its spool.

A cart that got a commitment would delete its images, which only the archive should allow it to.
"""

from __future__ import annotations

from pydicom.dataset import Dataset
from pynetdicom import evt

STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
PROCESSING_FAILURE = 0x0110  # PS3.7 C.5.7
REFUSAL = "This node is no archive: ask the PACS for storage commitment."  # at most 64 characters, as an LO has


def refuse(event: evt.Event) -> tuple[Dataset, None]:
    """Answer an N-ACTION with the refusal."""
    status = Dataset()
    status.Status, status.ErrorComment = PROCESSING_FAILURE, REFUSAL
    return status, None
