"""Slots on a GPU of numpy: copies move what they say and nothing else, neighbours do not meet, and memory comes back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echovlm_edge.runtime.backends import Kept, SlotMemory, SlotRows
from echovlm_edge.runtime.backends.gpu.backend import GpuBackend
from echovlm_edge.runtime.backends.gpu.device import step_sizes
from echovlm_edge.runtime.backends.gpu.slots import DeviceKept, DeviceSlot, DeviceSlots, SlotLayout
from echovlm_edge.runtime.backends.gpu.stretches import Stretches
from echovlm_edge.runtime.bundle.manifest import Bundle, FileSpec, Part, TensorSpec
from echovlm_edge.runtime.engine.caching.reuse import BLOCK, PrefixStore
from echovlm_edge.runtime.prompting.rotary import Angles, MultimodalRotary
from tests.support.numpy_device import NumpyDevice
from tests.support.tensorrt_bundles import backend_of, tensorrt_like

BuildBundle = Callable[..., Path]
SLOTS, CAPACITY, LAYERS, HEADS, DIM = 3, 150, 2, 2, 6
TOKEN = 2 * LAYERS * HEADS * DIM * 2  # bytes of a token's keys and values in float16
FILE = FileSpec("decoder.engine", 1, "")
DECODER = Part("decoder", "", (FILE,), (TensorSpec("keys.0", "float16", ("batch", HEADS, "context", DIM)),), (), {})


def new_slots(kept: int = 1 << 16, spilled: int = 1 << 16) -> tuple[NumpyDevice, list[DeviceSlot]]:
    device = NumpyDevice()
    asked = SlotMemory(SLOTS, CAPACITY, kept, spilled)
    layout = SlotLayout.of(DECODER, LAYERS, SLOTS, CAPACITY)
    slots = DeviceSlots(device, device.new_stream(), layout, asked)
    return device, [DeviceSlot(slots, number) for number in range(SLOTS)]


def contents(device: NumpyDevice, slot: DeviceSlot) -> np.ndarray:
    """A slot's keys and values [tensors, heads, capacity, dim] as the decoder finds them, to read and to write."""
    slot.slots.stream.synchronize()
    bindings = slot.slots.bindings(slot.number, 1).values()
    return np.stack([device.at(at.address, HEADS * CAPACITY * DIM * 2).view(np.float16) for at in bindings])


def fill(device: NumpyDevice, slot: DeviceSlot, value: float) -> None:
    slot.slots.stream.synchronize()
    for at in slot.slots.bindings(slot.number, 1).values():
        device.at(at.address, HEADS * CAPACITY * DIM * 2).view(np.float16)[:] = value + np.arange(
            HEADS * CAPACITY * DIM
        )


@given(st.data())
@settings(max_examples=60)
def test_any_copies_are_those_of_plain_arrays(data: st.DataObject) -> None:
    device, slots = new_slots()
    model = np.zeros((SLOTS, 2 * LAYERS, HEADS, CAPACITY, DIM), np.float16)
    for number, slot in enumerate(slots):
        fill(device, slot, 10 * number)
        model[number] = contents(device, slot).reshape(model[number].shape)
    kept: list[tuple[Kept, np.ndarray]] = []
    number, tokens = st.integers(0, SLOTS - 1), st.integers(1, CAPACITY)
    for _ in range(data.draw(st.integers(1, 12))):
        one, count = data.draw(number), data.draw(tokens)
        match data.draw(st.sampled_from(["read", "park", "write", "first", "spill", "move", "clear"])):
            case "read":
                start = data.draw(st.integers(0, count - 1))
                kept.append((slots[one].read(count, start), model[one][:, :, start:count].copy()))
            case "park":
                kept.append((slots[one].park(count), model[one][:, :, :count].copy()))
            case "move":
                other = (one + data.draw(st.integers(1, SLOTS - 1))) % SLOTS
                back = data.draw(st.integers(0, CAPACITY))
                slots[one].move(slots[other], count, back)
                moved, came = model[one][:, :, :count].copy(), model[other][:, :, :back].copy()
                model[other][:, :, :count] = moved
                model[one][:, :, :back] = came
                # what lies beyond both is nobody's
                model[one] = keep(model[one], contents(device, slots[one]), back)
                model[other] = keep(model[other], contents(device, slots[other]), count)
            case "clear":
                slots[one].clear(count)
                model[one][:, :, :count] = 0
                model[one][:, :, -1] = 0
            case change if kept:
                index = data.draw(st.integers(0, len(kept) - 1))
                what, values = kept[index]
                if change == "write":
                    start = data.draw(st.integers(0, CAPACITY - values.shape[2]))
                    slots[one].write(what, start)
                    model[one][:, :, start : start + values.shape[2]] = values
                elif change == "first":
                    kept[index] = (what.first(count), values[:, :, :count])
                else:
                    kept[index] = (what.spilled(), values)
    for slot, expected in zip(slots, model, strict=True):
        np.testing.assert_array_equal(contents(device, slot).reshape(expected.shape), expected)


def keep(model: np.ndarray, found: np.ndarray, tokens: int) -> np.ndarray:
    """The model's first tokens, and beyond them what was found."""
    beyond = found.reshape(model.shape).copy()
    beyond[:, :, :tokens] = model[:, :, :tokens]
    return beyond


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 2000)), max_size=60))
def test_stretches_never_overlap_and_all_come_back(steps: list[tuple[bool, int]]) -> None:
    size = 1 << 14
    stretches, taken = Stretches(1024, size), []
    for take, wanted in steps:
        if take:
            try:
                taken.append((stretches.take(wanted), wanted))
            except MemoryError:
                continue
        elif taken:
            del taken[wanted % len(taken)]
        spans = sorted((stretch.address, stretch.address + length) for stretch, length in taken)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert not spans or (spans[0][0] >= 1024 and spans[-1][1] <= 1024 + size)
    taken.clear()
    assert stretches.take(size).address == 1024


def test_prompts_that_have_no_room_spill_to_the_host_and_come_back() -> None:
    device, (slot, *_) = new_slots(kept=2 * BLOCK * TOKEN, spilled=2 * BLOCK * TOKEN)
    store, size = PrefixStore(2 * BLOCK * TOKEN, 2 * BLOCK * TOKEN), BLOCK * TOKEN
    for number in range(4):
        fill(device, slot, number)
        store.put("", [bytes([number])], size, partial(slot.read, BLOCK))
    assert on_host(store) == {0: True, 1: True, 2: False, 3: False}, "the oldest went"
    found = store.longest([b"\0"])
    assert found is not None and on_host(store)[0] and not store.covers([b"\0"])
    found.write(slot)
    assert contents(device, slot)[0, 1] == 1, "it has what was kept of it"
    del found
    store.put("", [b"\0"], size, partial(slot.read, BLOCK))
    assert on_host(store) == {0: False, 1: True, 2: True, 3: False}, "it came back, for the oldest"
    store.put("", [b"\4"], size, partial(slot.read, BLOCK))
    assert on_host(store) == {0: False, 2: True, 3: True, 4: False}, "the host's oldest is dropped"


def on_host(store: PrefixStore) -> dict[int, bool]:
    return {
        name[0]: all(isinstance(part, DeviceKept) and part.on_host for part in prefix.kept.parts)
        for name, prefix in store._prefixes.items()
    }


def test_a_slot_passes_nothing_through_the_host_unless_it_is_parked() -> None:
    device, (one, two, _) = new_slots()
    uploads = device.downloaded
    one.move(two, CAPACITY, CAPACITY)
    two.write(one.read(CAPACITY))
    one.slots.stream.synchronize()
    assert device.downloaded == uploads
    assert isinstance(one.park(CAPACITY), DeviceKept)


# --- steps of several sequences ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(build_bundle: BuildBundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tensorrt_like(build_bundle(target="portable"), tmp_path_factory.mktemp("trt") / "bundle", batch=8)


def token(bundle: Bundle, backend: GpuBackend, slot: DeviceSlot, index: int) -> SlotRows:
    """Some token of the sequence in a slot, at `index`."""
    spec = bundle.manifest.model
    ids = np.array([(7 * index + 31 * slot.number) % spec.vocab_size])
    angles = MultimodalRotary(spec.mrope_section, spec.rope_theta).angles(np.full((3, 1), index))
    return SlotRows(slot, index, backend.embed(ids), angles)


def chunk(bundle: Bundle, backend: GpuBackend, slot: DeviceSlot, tokens: int) -> SlotRows:
    """The first tokens of the sequence in a slot."""
    parts = [token(bundle, backend, slot, index) for index in range(tokens)]
    angles = Angles(*(np.concatenate([getattr(part.angles, name) for part in parts]) for name in ("cos", "sin")))
    return SlotRows(slot, 0, np.concatenate([part.embeddings for part in parts]), angles)


@pytest.mark.parametrize("together", range(1, 9))
def test_neighbours_of_nan_change_nothing(bundle: Bundle, together: int) -> None:
    """A step of any number of sequences: what lies in the other slots reaches none of them, and they keep what they have."""
    backend = backend_of(bundle, NumpyDevice())
    slots = backend.new_slots(SlotMemory(8, 40))
    alone = [
        [np.array(backend.turn([token(bundle, backend, slot, index)])[0][0]) for index in range(4)]
        for slot in slots[:together]
    ]
    device = NumpyDevice()
    backend = backend_of(bundle, device)
    slots = backend.new_slots(SlotMemory(8, 40))
    beyond = slots[together:]
    for slot in beyond:
        poison(device, slot)
    before = [poisoned(device, slot) for slot in beyond]
    for index in range(4):
        rows = [token(bundle, backend, slot, index) for slot in slots[:together]]
        for row, (logits,) in enumerate(backend.turn(rows)):
            np.testing.assert_allclose(np.array(logits), alone[row][index], atol=1e-4)
    assert device.launches == sum(1 for _ in step_sizes(8)) + 4, "each step is one graph"
    for slot, was in zip(beyond, before, strict=True):
        now = poisoned(device, slot)
        now[:, :, -1], was[:, :, -1] = 0, 0  # the last position is nobody's
        np.testing.assert_array_equal(now, was)


def test_a_prompt_beside_a_padded_step_is_read_as_alone(bundle: Bundle) -> None:
    """Three sequences write in slots 0 to 2, in a step of four rows; in slot 3 a prompt is half read."""
    backend = backend_of(bundle, NumpyDevice())
    slots = backend.new_slots(SlotMemory(4, 40))
    ((whole,),) = backend.turn([chunk(bundle, backend, slots[3], 20)])
    expected = np.array(whole)
    backend = backend_of(bundle, NumpyDevice())
    slots = backend.new_slots(SlotMemory(4, 40))
    first = chunk(bundle, backend, slots[3], 20)
    half = Angles(first.angles.cos[:10], first.angles.sin[:10])
    backend.turn([SlotRows(slots[3], 0, first.embeddings[:10], half)])
    for index in range(3):
        backend.turn([token(bundle, backend, slot, index) for slot in slots[:3]])
    rest = Angles(first.angles.cos[10:], first.angles.sin[10:])
    ((logits,),) = backend.turn([SlotRows(slots[3], 10, first.embeddings[10:], rest)])
    np.testing.assert_allclose(np.array(logits), expected, atol=1e-4)


def test_drafts_of_several_sequences_run_together(bundle: Bundle) -> None:
    """Up to eight tokens each of adjacent slots are one call."""
    device = NumpyDevice()
    runs = []
    backend = backend_of(bundle, device, before_run={"decoder": lambda: runs.append(1)})
    slots = backend.new_slots(SlotMemory(4, 40))
    alone = [np.array(backend.turn([chunk(bundle, backend, slot, 5)])[0][0]) for slot in slots]
    runs.clear()
    together = backend.turn([chunk(bundle, backend, slot, 5) for slot in slots])
    assert len(runs) == 1
    for (logits,), expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(np.array(logits), expected, atol=1e-4)


@pytest.mark.parametrize("lengths", [[3, 1, 5, 2], [8, 1], [1, 1, 4]])
def test_drafts_of_different_lengths_are_one_call_and_each_row_has_its_logits(
    bundle: Bundle, lengths: list[int]
) -> None:
    """Padded behind the shorter ones; the next tokens overwrite the padding."""
    backend = backend_of(bundle, NumpyDevice())
    slots = backend.new_slots(SlotMemory(4, 40))
    alone = [[np.array(backend.turn([token(bundle, backend, slot, at)])[0][0]) for at in range(11)] for slot in slots]
    runs = list[int]()
    backend = backend_of(bundle, NumpyDevice(), before_run={"decoder": lambda: runs.append(1)})
    slots = backend.new_slots(SlotMemory(4, 40))
    filled = [0] * len(lengths)
    for step in (lengths, lengths[::-1], [1] * len(lengths)):
        rows = [draft(bundle, backend, slots[n], filled[n], count) for n, count in enumerate(step)]
        runs.clear()
        found = backend.turn(rows)
        assert len(runs) <= 1, "a recorded step queues nothing"
        for number, (count, logits) in enumerate(zip(step, found, strict=True)):
            assert len(logits) == count
            for row, ours in enumerate(logits):
                np.testing.assert_allclose(np.array(ours), alone[number][filled[number] + row], atol=1e-4)
            filled[number] += min(count, 2)  # the others are rejected


def test_padding_ends_before_a_slots_last_position(bundle: Bundle) -> None:
    """To which rows without a sequence write."""
    device = NumpyDevice()
    backend = backend_of(bundle, device)
    first, second = backend.new_slots(SlotMemory(2, 12))
    backend.turn([draft(bundle, backend, first, 0, 8)])
    before = poisoned(device, first)
    expected = np.array(backend.turn([draft(bundle, backend, second, 0, 4)])[0][-1])
    found = backend.turn([draft(bundle, backend, first, 8, 1), draft(bundle, backend, second, 0, 4)])
    np.testing.assert_allclose(np.array(found[1][-1]), expected, atol=1e-4)
    now = poisoned(device, first)
    np.testing.assert_array_equal(now[:, :, 9:-1], before[:, :, 9:-1])


def draft(bundle: Bundle, backend: GpuBackend, slot: DeviceSlot, past: int, tokens: int) -> SlotRows:
    """Tokens of the sequence in a slot from `past` on, with the logits of each."""
    parts = [token(bundle, backend, slot, index) for index in range(past, past + tokens)]
    angles = Angles(*(np.concatenate([getattr(part.angles, name) for part in parts]) for name in ("cos", "sin")))
    return SlotRows(slot, past, np.concatenate([part.embeddings for part in parts]), angles, logits=tokens)


def test_a_turn_of_any_rows_gives_each_its_own_logits(bundle: Bundle) -> None:
    """Chunks of different lengths and slots that are not adjacent: several calls, whose logits are all still there."""
    backend = backend_of(bundle, NumpyDevice())
    slots = backend.new_slots(SlotMemory(4, 40))
    lengths = {0: 3, 1: 9, 3: 9}
    alone = [np.array(backend.turn([chunk(bundle, backend, slots[at], n)])[0][0]) for at, n in lengths.items()]
    together = backend.turn([chunk(bundle, backend, slots[at], n) for at, n in lengths.items()])
    for (logits,), expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(np.array(logits), expected, atol=1e-4)


def test_a_sampled_row_copies_its_own_logits_only(bundle: Bundle) -> None:
    device = NumpyDevice()
    backend = backend_of(bundle, device)
    slots = backend.new_slots(SlotMemory(4, 40))
    logits = backend.turn([token(bundle, backend, slot, 0) for slot in slots])
    device.downloaded = 0
    assert np.array(logits[2][0]).shape == (bundle.manifest.model.vocab_size,)
    assert device.downloaded == 4 * bundle.manifest.model.vocab_size


def poison(device: NumpyDevice, slot: DeviceSlot) -> None:
    slot.slots.stream.synchronize()
    for at in slot.slots.bindings(slot.number, 1).values():
        device.at(at.address, int(np.prod(at.shape)) * 4).fill(0xFF)


def poisoned(device: NumpyDevice, slot: DeviceSlot) -> np.ndarray:
    bindings = slot.slots.bindings(slot.number, 1).values()
    return np.stack(
        [device.at(at.address, int(np.prod(at.shape)) * 4).view(np.uint32).reshape(at.shape)[0] for at in bindings]
    )
