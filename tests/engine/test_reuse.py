"""What is kept of images and prompts: found whole and by its own scope only, within memory that no client takes from all others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.runtime.backends.onnxruntime import HostKept
from echovlm_edge.runtime.contracts.request import Frame
from echovlm_edge.runtime.engine.caching.joined_kept import JoinedKept
from echovlm_edge.runtime.engine.caching.reuse import BLOCK, ImageStore, PrefixStore, block_names
from echovlm_edge.runtime.prompting.prompt import Prompt
from echovlm_edge.runtime.resources.fair_memory import FairMemory


def prompt(tokens: Sequence[int], image: slice = slice(0, 0)) -> Prompt:
    ids = np.array(tokens, np.int64)
    return Prompt(ids, np.zeros((3, len(ids)), np.int64), np.arange(len(ids))[image], len(ids))


def names(blocks: Sequence[int], scope: str = "a") -> tuple[bytes, ...]:
    """Name the blocks of a prompt in which a block's tokens all have one id."""
    return block_names(prompt(np.repeat(blocks, BLOCK).tolist()), [], scope)


def kept(blocks: Sequence[int]) -> HostKept:
    """Keys and values that tell which prompt they are of."""
    return HostKept(np.repeat(np.array(blocks, np.float32), BLOCK)[None, None, :, None].repeat(4, axis=3))


def put(
    store: PrefixStore, blocks: Sequence[int], named: Sequence[bytes] | None = None, about: bytes = b""
) -> list[int]:
    """Cache a prompt; returns which of its blocks were copied."""
    copied = list[int]()

    def copy(start: int) -> HostKept:
        copied.extend(blocks[start // BLOCK :])
        return kept(copied)

    store.put("a", named or names(blocks), ONE_BLOCK * len(blocks), copy, about)
    return copied


def of_blocks(found: JoinedKept) -> list[int]:
    """Tell which blocks' keys and values they are."""
    parts = [part.values[0, 0, ::BLOCK, 0] for part in found.parts if isinstance(part, HostKept)]
    return [round(float(value)) for value in np.concatenate(parts)]


ONE_BLOCK = kept([0]).nbytes
prompts = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@given(st.lists(prompts, max_size=12), prompts)
def test_the_longest_known_prefix_is_found_and_memory_bounded(puts: list[list[int]], wanted: list[int]) -> None:
    bound = ONE_BLOCK * 10
    store = PrefixStore(bound)
    for blocks in puts:
        put(store, blocks)
        assert store.stats().bytes <= bound and store.covers(names(blocks))
        assert store.stats().bytes == sum(prefix.kept.nbytes for prefix in store._prefixes.values())
    known = [of_blocks(prefix.kept) for prefix in store._prefixes.values()]
    shared = max((common(prefix, wanted) for prefix in known), default=0)
    found = store.longest(names(wanted))
    assert (0 if found is None else found.tokens) == shared * BLOCK
    if found is not None:
        assert of_blocks(found) == wanted[:shared]
    if puts:
        assert shared >= common(puts[-1], wanted), "the newest is always still there"
    assert store.longest(names(wanted, "b")) is None and not store.covers(names(wanted, "b"))


def common(first: list[int], second: list[int]) -> int:
    """How many first blocks two prompts share."""
    return next((place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
                min(len(first), len(second)))  # fmt: skip


@given(st.lists(prompts, min_size=1, max_size=12))
def test_what_is_displaced_leaves_nothing_behind(puts: list[list[int]]) -> None:
    store = PrefixStore(ONE_BLOCK * 6)
    for blocks in puts:
        put(store, blocks)
    indexed = {last for through in store._through.values() for last in through}
    assert indexed == store._prefixes.keys() and len(store._near) == len(store._prefixes)


def test_a_newer_reply_about_the_same_images_takes_the_place_of_the_older() -> None:
    store = PrefixStore(ONE_BLOCK * 100)

    def put_reply(*blocks: int, images: int = 1) -> None:
        put(store, blocks, about=names(blocks)[images - 1])

    put(store, [1, 2])
    put_reply(1, 5, 6)
    assert store.covers(names([1, 2])) and store.covers(names([1, 5, 6]))
    put_reply(1, 7)
    assert store.covers(names([1, 2])) and store.covers(names([1, 7])) and not store.covers(names([1, 5]))
    put_reply(1, 7, 8)
    put_reply(1, 7, 9, 3, images=3)
    assert store.stats().entries == 3 and len(store._replies) == 2
    assert {*store._replies.values()} < store._prefixes.keys()


def test_what_is_cached_of_a_beginning_is_not_copied_again() -> None:
    store, images = PrefixStore(ONE_BLOCK * 100), [1, 2]
    about = names(images)[-1]
    assert put(store, images) == images
    assert put(store, [1, 2, 3, 4], about=about) == [3, 4], "a reply"
    assert put(store, [1, 2, 3, 4, 5], about=about) == [5], "a second turn"
    assert put(store, [1, 2, 6], about=about) == [6], "another question, whose reply takes the place of the other"
    (prefix,) = store._prefixes.values()
    assert of_blocks(prefix.kept) == [1, 2, 6] and store.stats().bytes == prefix.kept.nbytes == 3 * ONE_BLOCK
    assert put(store, [1, 7]) == [1, 7], "a part of a copy would hold the memory of all of it"
    found = store.longest(names([1, 7, 8]))
    assert found is not None and of_blocks(found) == [1, 7] and of_blocks(found.first(BLOCK)) == [1]


class Counted(bytes):
    """A name that counts how often it is looked up."""

    lookups = 0

    def __hash__(self) -> int:
        Counted.lookups += 1
        return super().__hash__()


def test_a_search_takes_no_longer_where_more_is_kept() -> None:
    def lookups(others: int) -> int:
        store = PrefixStore(ONE_BLOCK * 10_000)
        for other in range(others):
            put(store, [1, 10 + other])
        wanted = [Counted(name) for name in names([1, 2, 3])]
        Counted.lookups = 0
        assert store.longest(wanted) is not None
        assert not store.covers(wanted)
        put(store, [1, 2, 3], wanted)
        return Counted.lookups

    assert lookups(1) == lookups(500)


def test_a_prompts_names_tell_images_text_and_scope_apart() -> None:
    image_token, tokens = 9, [9] * BLOCK
    image = slice(0, BLOCK)
    frames = [Frame(np.full((4, 4, 3), value, np.uint8), "image 1") for value in (0, 1)]
    assert len(frames[0].identity) == 16 and frames[0].identity != frames[1].identity
    of_image = [block_names(prompt(tokens, image), [(frame.identity, BLOCK)], "a") for frame in frames]
    of_text = block_names(prompt([image_token] * BLOCK), [], "a")
    of_other_scope = block_names(prompt(tokens, image), [(frames[0].identity, BLOCK)], "b")
    assert len({*of_image, of_text, of_other_scope}) == 4
    assert block_names(prompt(tokens, image), [(frames[0].identity, BLOCK)], "a") == of_image[0]
    assert block_names(prompt(tokens[1:]), [], "a") == ()


def test_an_image_is_found_by_its_own_scope_only() -> None:
    store = ImageStore(1000)
    store.put("a", b"image", np.zeros(10, np.float32))
    assert store.get("a", b"image") is not None and store.get("b", b"image") is None
    assert store.get("a", b"other") is None
    stats = store.stats()
    assert (stats.hits, stats.misses, stats.entries, stats.bytes) == (1, 2, 1, 40)


puts = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 60)), max_size=40)


@given(puts, st.lists(st.integers(1, 20), min_size=1, max_size=100))
def test_one_scope_never_takes_everything(before: list[tuple[str, int]], flood: list[int]) -> None:
    """However much one puts, others keep what is below their equal share, but for one newest entry."""
    memory, total = FairMemory[int](100), {}
    for key, (scope, size) in enumerate([*before, *(("flood", size) for size in flood)]):
        if memory.takes(scope, size):
            total[key] = scope, size
            for displaced in memory.add(scope, key, size):
                del total[displaced]
            assert key in total, "the newest is always kept"
        assert memory.bytes == sum(size for _, size in total.values()) <= 100 and len(memory) == len(total)
    others = {scope: sum(size for name, size in total.values() if name == scope) for scope in "abc"}
    had = {scope for scope, _ in before if scope != "flood"}
    if sum(flood) > 500 and had:
        assert sum(others.values()) > 0, "nothing of anybody else is left"


def test_a_scope_that_keeps_most_gives_first_and_its_oldest() -> None:
    memory = FairMemory[str](100)
    for key in ("a1", "a2", "a3", "a4"):
        assert memory.add("a", key, 25) == []
    assert memory.add("b", "b1", 25) == ["a1"]
    memory.touch("a2")
    assert memory.add("b", "b2", 25) == ["a3"]
    assert memory.add("b", "b3", 25) == ["b1"], "it keeps no more than others do"
    assert not memory.takes("c", 51) and memory.takes("c", 50) and not memory.takes("c", 0)
