"""What fuzzing found is answered as it should be, in the sandbox as in its own process; and so are files near to valid ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.contracts.request import ImageInput
from echovlm_edge.runtime.imaging.sandbox.sandbox import DecodeSandbox, SandboxLimits
from tests.fuzz.__main__ import CORPUS
from tests.fuzz.targets import LIMITS, TARGETS
from tests.support.decoding import read
from tests.support.waiting import wait_for

FILES = {name: sorted((CORPUS / name).iterdir()) for name in TARGETS}
SEEDS = {name: target.seeds() for name, target in TARGETS.items()}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[DecodeSandbox]:
    sandbox = DecodeSandbox(SandboxLimits(processes=1, memory_bytes=2 << 30, seconds=20), LIMITS)
    wait_for(lambda: len(sandbox.pids()) >= 2)
    yield sandbox
    sandbox.close()


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_taken(name: str) -> None:
    for seed in SEEDS[name]:
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_answered(name: str) -> None:
    assert FILES[name], "the corpus is missing"
    for file in FILES[name]:
        TARGETS[name].run(file.read_bytes())


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "request"])
def test_the_sandbox_outlives_the_corpus(name: str, sandbox: DecodeSandbox) -> None:
    before = sandbox.pids()
    for file in FILES[name]:
        try:
            read(sandbox, ImageInput(file.read_bytes(), name="it"))
        except (InvalidInput, NotPossibleHere) as refused:
            assert str(refused).startswith("it ")
    assert sorted(sandbox.pids()) == sorted(before), "a file ended the process"


@pytest.mark.parametrize("name", TARGETS)
def test_near_to_valid(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def mutated(data: st.DataObject) -> None:
        seed = bytearray(data.draw(st.sampled_from(SEEDS[name])))
        for _ in range(data.draw(st.integers(1, 4))):
            start = data.draw(st.integers(0, len(seed)))
            seed[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
        target.run(target.repair(bytes(seed)))

    mutated()


def test_checksums_are_repaired() -> None:
    picture = SEEDS["png"][0]
    broken = picture[:-1] + bytes([picture[-1] ^ 1])
    assert TARGETS["png"].repair(broken) == picture
