"""Whose turn it is at the server, and what that leaves for other clients."""

from __future__ import annotations

from pathlib import Path

import pytest

from echovlm_edge.runtime.client.report_client import ReportClient
from echovlm_edge.runtime.contracts.request import Sampling
from echovlm_edge.runtime.dicom_node.reporting import working
from echovlm_edge.runtime.dicom_node.reporting.turns import Places, Turn, next_turn
from echovlm_edge.runtime.dicom_node.spool.rows import Study
from echovlm_edge.runtime.dicom_node.spool.states import StudyState
from echovlm_edge.runtime.serving.studies import StudyLimits
from echovlm_edge.runtime.serving.transport.server import ServerOptions
from tests.support.carts import Pacs, running_node, still, store, study_of, write
from tests.support.running_server import running
from tests.support.waiting import wait_for


def of(id: int) -> Study:
    """A study that began and changed at the time of its id."""
    return Study(id, f"1.2.{id}", StudyState.COMPLETE, 1, "CART", "", "", float(id), float(id))


@pytest.mark.parametrize(
    ("owed", "receiving", "due", "open_", "busy", "studies", "calls", "expected"),
    [
        ((), (), (), (), (), 4, 2, None),
        ((1, 2, 3), (), (1, 2, 3), (), (), 4, 2, (3, None)),  # the latest complete one first
        ((1, 2, 3), (), (1, 2), (), (), 4, 2, (2, None)),  # the latest was not answered, and waits
        ((1, 2, 3), (), (1, 2, 3), (3,), (3,), 4, 2, (2, None)),
        ((1, 2, 3), (), (1, 2, 3), (2, 3), (2, 3), 4, 2, None),  # no call is free
        ((1,), (7, 8), (1, 7, 8), (), (), 4, 2, (1, None)),  # owed before what still receives
        ((), (7, 8), (7, 8), (), (), 4, 2, (8, None)),
        ((), (7, 8), (7, 8), (8,), (8,), 4, 2, None),  # one call is left to reports
        ((), (7, 8), (7, 8), (), (), 4, 1, (8, None)),  # where there is only one, reading ahead has it too
        ((), (7, 8, 9), (7, 9), (7, 8), (), 2, 2, (7, None)),  # reading ahead takes nobody's place
        ((), (7, 8, 9), (9,), (7, 8), (), 2, 2, None),
        ((1,), (7, 8), (1,), (7, 8), (), 2, 2, (1, 7)),  # an owed report does, that of the last
        ((1,), (7, 8), (1,), (7, 8), (7,), 2, 2, (1, 8)),  # on which nobody works
        ((1,), (7, 8), (1,), (7, 8), (7, 8), 2, 3, None),
        ((1, 2), (), (1,), (2,), (), 1, 2, None),  # not that of one that comes before
        ((1, 2), (), (1, 2), (1,), (), 1, 2, (2, 1)),
        ((1, 2), (7,), (2,), (1, 99), (), 2, 2, (2, 99)),  # one that is neither owed nor receives is the last
        ((1, 2), (), (1, 2), (), (2,), 1, 2, None),  # a study that is being opened has a place already
    ],
)
def test_whose_turn_it_is(
    owed: tuple[int, ...],
    receiving: tuple[int, ...],
    due: tuple[int, ...],
    open_: tuple[int, ...],
    busy: tuple[int, ...],
    studies: int,
    calls: int,
    expected: tuple[int, int | None] | None,
) -> None:
    places = Places(frozenset(open_), frozenset(busy), studies, calls)
    found = next_turn([of(id) for id in owed], [of(id) for id in receiving], due, places)
    assert found == (expected and Turn(of(expected[0]), expected[1]))


def test_another_client_finds_a_place_and_an_owed_report_too(
    golden_bundle: Path, tmp_path: Path, pacs: Pacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server for four studies: the node opens two of its six, and one that is complete gets the place of one that still receives."""
    monkeypatch.setattr(working, "FIRST_PAUSE", 0.05)
    options = ServerOptions(studies=StudyLimits(max_studies=4))
    studies = [study_of() for _ in range(6)]
    with (
        running(golden_bundle, options) as server,
        running_node(tmp_path / "spool", server.server.address, destination=(pacs.name,), quiet_seconds=600) as node,
        ReportClient(server.server.address) as client,
    ):
        files = [write(tmp_path / "in", still(study, seed)) for seed, study in enumerate(studies)]
        for each in files:
            assert store(node, each) == {}
        found = [node.spool.studies.find(str(study["StudyInstanceUID"])) for study in studies]
        wait_for(lambda: sum(not node.spool.studies.undecided(study, "still") for study in found) == 2)
        assert len(client.studies()) == 2
        with client.study() as beside:
            beside.add(files[0][0])
            assert beside.report(sampling=Sampling(max_new_tokens=4)).text
            waiting = [study for study in found if node.spool.studies.undecided(study, "still")]
            for study in waiting:
                assert node.spool.studies.complete(study, "an operator's word")
                wait_for(lambda study=study: pacs.documents(study.uid))
            assert len(client.studies()) <= 3
        assert node.working.server_faults == 0
