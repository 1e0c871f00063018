"""What rows cost is measured on slots that nobody has, in bounded time, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from echovlm_edge.runtime.backends import Logits, SlotMemory, SlotRows
from echovlm_edge.runtime.engine.scheduling import row_times
from echovlm_edge.runtime.engine.scheduling.row_times import ROUNDS, ROWS, measure_rows
from tests.support.hashed_decoder import HashedDecoder, Positions


class Slow(HashedDecoder):
    """A decoder whose calls take a millisecond, and a quarter of one for each row, on a clock of its own."""

    now = 0.0

    def turn(self, rows: Sequence[SlotRows]) -> list[list[Logits]]:
        self.now += 0.001 + 0.00025 * sum(part.tokens for part in rows)
        return super().turn(rows)


@pytest.fixture
def time_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Slow], None]:
    """Let time pass in a decoder's calls only."""
    return lambda backend: monkeypatch.setattr(row_times, "perf_counter", lambda: backend.now)


@pytest.mark.parametrize(("packs_rows", "slots"), [(True, 1), (False, 1), (False, 4)])
def test_every_size_that_one_call_takes_is_measured(
    packs_rows: bool, slots: int, time_of: Callable[[Slow], None]
) -> None:
    backend = Slow(packs_rows=packs_rows)
    time_of(backend)
    memory = backend.new_slots(SlotMemory(slots, 40))
    cost = measure_rows(backend, Positions(), memory, lambda: False)  # type: ignore[arg-type]
    measured = {sum(call) for call in backend.calls}
    assert measured == {rows for rows in ROWS if packs_rows or slots > 1 or rows <= 8}
    assert all(len(set(call)) == 1 and max(call) <= backend.step_tokens(len(call)) for call in backend.calls)
    assert len(backend.calls) == len(measured) * ROUNDS
    assert [cost(rows) for rows in (1, 5, 64)] == pytest.approx([0.00125, 0.00225, 0.017])
    assert not any(slot.values.any() for slot in memory)


def test_it_ends_once_the_time_is_over_or_the_engine_closed(
    monkeypatch: pytest.MonkeyPatch, time_of: Callable[[Slow], None]
) -> None:
    backend = Slow()
    time_of(backend)
    memory = backend.new_slots(SlotMemory(1, 40))
    assert measure_rows(backend, Positions(), memory, lambda: True)(1) > 0  # type: ignore[arg-type]
    assert len(backend.calls) == 1
    monkeypatch.setattr(row_times, "SECONDS", 0.0)
    measure_rows(backend, Positions(), memory, lambda: False)  # type: ignore[arg-type]
    assert len(backend.calls) == 1 + 4, "two sizes are measured twice whatever that takes"


def test_first_calls_that_read_the_weights_from_disk_do_not_make_rows_look_free(
    monkeypatch: pytest.MonkeyPatch, time_of: Callable[[Slow], None]
) -> None:
    class Cold(Slow):
        def turn(self, rows: Sequence[SlotRows]) -> list[list[Logits]]:
            if len(self.calls) < 2:
                self.now += 0.1
            return super().turn(rows)

    monkeypatch.setattr(row_times, "SECONDS", 0.05)
    backend = Cold()
    time_of(backend)
    cost = measure_rows(backend, Positions(), backend.new_slots(SlotMemory(1, 40)), lambda: False)  # type: ignore[arg-type]
    assert len(backend.calls) == 4
    assert [cost(rows) for rows in (1, 8)] == pytest.approx([0.00125, 0.003])
