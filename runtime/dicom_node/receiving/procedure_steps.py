"""Modality Performed Procedure Step (PS3.4 annex F): a cart says when an examination is complete, and which images it made.

A study is complete when a step of it is COMPLETED and none is in progress, and all images that the steps list are in the spool.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
import warnings
from collections.abc import Sequence
from typing import cast

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.dimse_primitives import N_CREATE, N_SET

from echovlm_edge.runtime.dicom_node.receiving.header import IMAGES
from echovlm_edge.runtime.dicom_node.spool.rows import Study
from echovlm_edge.runtime.dicom_node.spool.spool import Spool
from echovlm_edge.runtime.formats.dicom_attributes import items

PERFORMED_PROCEDURE_STEP = "1.2.840.10008.3.1.2.3.3"
# PS3.7 annex C.
SUCCESS, PROCESSING_FAILURE, DUPLICATE, NO_SUCH_INSTANCE, INVALID_VALUE = 0x0000, 0x0110, 0x0111, 0x0112, 0x0106
IN_PROGRESS, COMPLETED, DISCONTINUED = "IN PROGRESS", "COMPLETED", "DISCONTINUED"

_log = logging.getLogger(__name__)


class ProcedureSteps:
    """The steps that carts have told of, in the spool. Threads may share it."""

    def __init__(self, spool: Spool) -> None:
        """Keep them in `spool`."""
        self._spool = spool

    def create(self, event: evt.Event) -> tuple[int, Dataset | None]:
        """Answer an N-CREATE: a step begins."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                attributes = event.attribute_list
                uid = str(cast(N_CREATE, event.request).AffectedSOPInstanceUID or "")
                scheduled = items(attributes, "ScheduledStepAttributesSequence")
                study = next((str(item.get("StudyInstanceUID", "")) for item in scheduled), "")
                status = str(attributes.get("PerformedProcedureStepStatus", ""))
            except Exception as error:  # damaged bytes can raise anything in the parser
                _log.warning("a procedure step cannot be read (%s)", type(error).__name__)
                return PROCESSING_FAILURE, None
        if not uid or not study or status != IN_PROGRESS:
            return INVALID_VALUE, None
        try:
            with self._spool.database.transaction() as sql:
                known = sql.execute("SELECT 1 FROM procedure_steps WHERE sop_instance = ?", (uid,)).fetchone()
                if known:
                    return DUPLICATE, None
                sql.execute("INSERT INTO procedure_steps VALUES (?, ?, ?, '[]', ?)", (uid, study, status, time.time()))
        except sqlite3.Error:
            return PROCESSING_FAILURE, None
        return SUCCESS, attributes

    def set(self, event: evt.Event) -> tuple[int, Dataset | None]:
        """Answer an N-SET: a step goes on, or ends."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                changes = event.modification_list
                uid = str(cast(N_SET, event.request).RequestedSOPInstanceUID or "")
                status = str(changes.get("PerformedProcedureStepStatus", IN_PROGRESS))
                images = json.dumps(_images(changes))
            except Exception as error:
                _log.warning("a procedure step cannot be read (%s)", type(error).__name__)
                return PROCESSING_FAILURE, None
        if status not in (IN_PROGRESS, COMPLETED, DISCONTINUED):
            return INVALID_VALUE, None
        try:
            with self._spool.database.transaction() as sql:
                row = sql.execute("SELECT status FROM procedure_steps WHERE sop_instance = ?", (uid,)).fetchone()
                if row is None:
                    return NO_SUCH_INSTANCE, None
                if row["status"] != IN_PROGRESS:  # PS3.4 F.7.2.2.2: an ended step may no longer be updated
                    return PROCESSING_FAILURE, None
                sql.execute(
                    "UPDATE procedure_steps SET status = ?, expected = CASE ? WHEN '[]' THEN expected ELSE ? END, changed = ?"
                    " WHERE sop_instance = ?",
                    (status, images, images, time.time(), uid),
                )
        except sqlite3.Error:
            return PROCESSING_FAILURE, None
        return SUCCESS, changes

    def is_complete(self, study: Study) -> bool:
        """Tell whether the cart has said that a study is complete, and all its images are there.

        Only of a study's first version: what comes after it waits for a quiet period, as nobody says when it ends.
        """
        if study.version > 1:
            return False
        rows = self._spool.database.rows("SELECT status, expected FROM procedure_steps WHERE study_uid = ?", study.uid)
        statuses = {row["status"] for row in rows}
        expected = {uid for row in rows for uid in json.loads(row["expected"])}
        if COMPLETED not in statuses or IN_PROGRESS in statuses or not expected:
            return False
        held = self._spool.database.rows(
            "SELECT sop_instance FROM instances WHERE study = ? AND kind != 'other'", study.id
        )
        return expected <= {row["sop_instance"] for row in held}


def _images(changes: Dataset) -> Sequence[str]:
    """List the images of a step's series, of the SOP classes that a report can be about."""
    return [
        str(image.get("ReferencedSOPInstanceUID", ""))
        for series in items(changes, "PerformedSeriesSequence")
        for image in items(series, "ReferencedImageSequence")
        if image.get("ReferencedSOPClassUID") in IMAGES
    ]
