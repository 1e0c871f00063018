"""How long a study has been quiet."""

from __future__ import annotations

from dataclasses import dataclass

from echovlm_edge.runtime.dicom_node.receiving.activity import Activity


@dataclass(eq=False)
class Association:
    alive: bool = True

    def is_alive(self) -> bool:
        return self.alive


def test_a_study_is_quiet_from_the_end_of_its_last_association() -> None:
    now = [0.0]
    activity, one, two = Activity(lambda: now[0]), Association(), Association()
    activity.touch("1.2", one)
    activity.touch("1.2", two)
    now[0], one.alive = 100.0, False
    activity.forget({"1.2"})
    assert activity.quiet_seconds("1.2") == 0
    now[0], two.alive = 200.0, False
    activity.forget({"1.2"})
    assert activity.quiet_seconds("1.2") == 0
    now[0] = 230.0
    assert activity.quiet_seconds("1.2") == 30


def test_what_is_over_takes_no_memory() -> None:
    """A study that was complete while its association was open: by its procedure step, or an operator's word."""
    activity, association = Activity(), Association()
    activity.touch("1.2", association)
    activity.forget(set())
    assert activity.quiet_seconds("1.2") == 0, "its association is open, and may bring more"
    association.alive = False
    activity.forget(set())
    assert not activity._open and not activity._last
