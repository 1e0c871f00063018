"""MPPS: a cart says that an examination is complete; Storage Commitment: refused by name."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UltrasoundImageStorage, generate_uid
from pynetdicom import AE
from pynetdicom.association import Association

from echovlm_edge.runtime.dicom_node.node import Node
from echovlm_edge.runtime.dicom_node.receiving.commitment import REFUSAL, STORAGE_COMMITMENT
from echovlm_edge.runtime.dicom_node.receiving.procedure_steps import PERFORMED_PROCEDURE_STEP
from tests.support.carts import Pacs, running_node, still, store, study_of, write
from tests.support.waiting import wait_for


@pytest.fixture
def node(tmp_path: Path, server: str, pacs: Pacs) -> Iterator[Node]:
    with running_node(tmp_path / "spool", server, destination=(pacs.name,), quiet_seconds=600) as running_one:
        yield running_one


@pytest.fixture
def cart(node: Node) -> Iterator[Association]:
    entity = AE("CART")
    entity.add_requested_context(PERFORMED_PROCEDURE_STEP)
    entity.add_requested_context(STORAGE_COMMITMENT)
    host, _, port = node.address.rpartition(":")
    association = entity.associate(host, int(port), ae_title="ECHOVLM")
    assert association.is_established and len(association.accepted_contexts) == 2
    yield association
    association.release()


def item(**values: object) -> Dataset:
    made = Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def begin(cart: Association, study: object, uid: str) -> int:
    scheduled = item(StudyInstanceUID=study)
    created = item(PerformedProcedureStepStatus="IN PROGRESS", ScheduledStepAttributesSequence=[scheduled])
    return int(cart.send_n_create(created, PERFORMED_PROCEDURE_STEP, uid)[0].Status)


def end(cart: Association, uid: str, files: list[Path], status: str = "COMPLETED") -> int:
    images = [item(ReferencedSOPClassUID=UltrasoundImageStorage, ReferencedSOPInstanceUID=path.stem) for path in files]
    series = item(SeriesInstanceUID=generate_uid(), ReferencedImageSequence=images)
    changed = item(PerformedProcedureStepStatus=status, PerformedSeriesSequence=[series])
    return int(cart.send_n_set(changed, PERFORMED_PROCEDURE_STEP, uid)[0].Status)


def test_a_completed_step_completes_the_study_once_its_images_are_there(
    node: Node, cart: Association, tmp_path: Path, pacs: Pacs
) -> None:
    study, uid = study_of(), generate_uid()
    files = write(tmp_path / "in", still(study, 1), still(study, 2))
    name = str(study["StudyInstanceUID"])
    assert begin(cart, name, uid) == 0
    store(node, files[:1])
    assert end(cart, uid, files) == 0
    time.sleep(0.6)
    assert node.spool.studies.find(name).state == "receiving"  # one image is still to come
    store(node, files[1:])
    wait_for(lambda: pacs.documents())
    assert node.spool.studies.find(name).completed_by == "the performed procedure step"
    store(node, write(tmp_path / "in", still(study, 3)))  # what comes later waits for the quiet period
    time.sleep(0.6)
    assert node.spool.studies.find(name).state == "receiving"


def test_a_step_in_progress_or_discontinued_completes_nothing(node: Node, cart: Association, tmp_path: Path) -> None:
    study = study_of()
    files = write(tmp_path / "in", still(study, 1))
    name = str(study["StudyInstanceUID"])
    first, second = generate_uid(), generate_uid()
    assert begin(cart, name, first) == begin(cart, name, second) == 0
    store(node, files)
    assert end(cart, first, files) == 0
    time.sleep(0.5)
    assert node.spool.studies.find(name).state == "receiving"
    assert end(cart, second, [], "DISCONTINUED") == 0
    wait_for(lambda: node.spool.studies.find(name).state != "receiving")


def test_steps_are_answered_by_the_standard(cart: Association) -> None:
    uid = generate_uid()
    assert begin(cart, "1.2.3", uid) == 0
    assert begin(cart, "1.2.3", uid) == 0x0111
    assert end(cart, generate_uid(), []) == 0x0112
    assert end(cart, uid, [], "SLEEPING") == 0x0106
    assert end(cart, uid, []) == 0
    assert end(cart, uid, []) == 0x0110


def test_storage_commitment_is_refused_by_name(cart: Association) -> None:
    asked = item(
        TransactionUID=generate_uid(),
        ReferencedSOPSequence=[item(ReferencedSOPClassUID=UltrasoundImageStorage, ReferencedSOPInstanceUID="1.2.3")],
    )
    status, _ = cart.send_n_action(asked, 1, STORAGE_COMMITMENT, "1.2.840.10008.1.20.1.1")
    assert status.Status == 0x0110 and status.ErrorComment == REFUSAL
    assert len(REFUSAL) <= 64
