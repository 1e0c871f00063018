"""Whose turn it is: priority, then what clients had, then arrival; against a plain queue that compares all items."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from echovlm_edge.runtime.resources.fair_queue import FairQueue

CLIENTS = ("a", "b", "c")


class PlainQueue:
    """A list of (item, client, priority, arrival, again), searched from end to end."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, str, int, int, bool]] = []
        self.had: dict[str, float] = {}
        self.level = 0.0
        self.arrivals = 0

    def push(self, item: int, client: str, priority: int, again: bool) -> None:
        self.had[client] = self.lifted(client)
        self.arrivals += 1
        self.entries.append((item, client, priority, self.arrivals, again))

    def order(self, entry: tuple[int, str, int, int, bool]) -> tuple[int, bool, float, int]:
        _, client, priority, arrival, again = entry
        return priority, not again, self.had[client], arrival

    def pop(self, allowed: set[int]) -> int | None:
        for priority in sorted({entry[2] for entry in self.entries}):
            first = min((entry for entry in self.entries if entry[2] == priority), key=self.order)
            if first[0] in allowed:
                self.entries.remove(first)
                self.level = self.had[first[1]]
                return first[0]
        return None

    def charge(self, client: str, work: int) -> None:
        self.had[client] = self.lifted(client) + work

    def lifted(self, client: str) -> float:
        waiting = {entry[1] for entry in self.entries}
        floor = min((self.had[name] for name in waiting), default=self.level)
        return max(self.had.get(client, 0.0), floor if client not in waiting else 0.0)


class Queues(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue()
        self.plain = PlainQueue()
        self.items = 0

    @rule(client=st.sampled_from(CLIENTS), priority=st.integers(0, 2))
    def push(self, client: str, priority: int) -> None:
        self.items += 1
        self.queue.push(self.items, client, priority)
        self.plain.push(self.items, client, priority, False)

    @rule(client=st.sampled_from(CLIENTS), priority=st.integers(0, 2))
    def push_again(self, client: str, priority: int) -> None:
        if any(entry[4] and entry[1:3] == (client, priority) for entry in self.plain.entries):
            return  # among a client's own the last to lose its turn is the first, and `plain` says no more
        self.items += 1
        self.queue.push(self.items, client, priority, again=True)
        self.plain.push(self.items, client, priority, True)

    @rule(refused=st.sets(st.integers(1, 30)))
    def pop(self, refused: set[int]) -> None:
        allowed = {entry[0] for entry in self.plain.entries} - refused
        expected = self.plain.pop(allowed)
        assert self.queue.first(lambda item: item in allowed) == expected
        assert self.queue.pop(lambda item: item in allowed) == expected

    @rule(client=st.sampled_from(CLIENTS), work=st.integers(1, 50))
    def charge(self, client: str, work: int) -> None:
        self.queue.charge(client, work)
        self.plain.charge(client, work)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.plain.entries:
            entry = data.draw(st.sampled_from(self.plain.entries))
            self.plain.entries.remove(entry)
            self.queue.remove(*entry[:3])

    @invariant()
    def the_same_wait(self) -> None:
        assert sorted(self.queue) == sorted(entry[0] for entry in self.plain.entries)
        assert len(self.queue) == len(self.plain.entries)


TestQueues = Queues.TestCase


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 50)), min_size=6, max_size=60))
def test_clients_that_wait_all_the_time_get_the_same(work: list[tuple[str, int]]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    had = dict.fromkeys("abc", 0)
    for client, cost in work:
        queue.push((client, cost), client, 0)
    waiting = [client for client, _ in work]
    while all(client in waiting for client in "abc"):
        popped = queue.pop()
        assert popped is not None
        client, cost = popped
        waiting.remove(client)
        queue.charge(client, cost)
        had[client] += cost
        assert max(had.values()) - min(had.values()) <= 100, "no client is ever more than one piece of work ahead"


def test_a_newcomer_does_not_wait_until_others_had_as_much_as_the_busiest() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push("batch", "b", 1)
    for _ in range(100):
        queue.push("interactive", "a", 0)
        assert queue.pop() == "interactive"
        queue.charge("a", 1000)
    queue.push("newcomer's batch", "c", 1)
    queue.push("more batch", "b", 1)
    assert queue.pop() == "batch"
    queue.charge("b", 10)
    assert queue.pop() == "newcomer's batch"


def test_what_cannot_run_yet_is_not_overtaken_by_its_own_priority_but_by_the_next() -> None:
    queue: FairQueue[str] = FairQueue()
    for name, priority in (("large batch", 1), ("small batch", 1), ("background", 2)):
        queue.push(name, name, priority)
    assert queue.pop(lambda item: item != "large batch") == "background"
    assert queue.pop(lambda item: item != "large batch") is None
    queue.push("was parked", "d", 1, again=True)
    assert [queue.pop() for _ in range(3)] == ["was parked", "large batch", "small batch"]
