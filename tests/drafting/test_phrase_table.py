"""A table of phrases counts as plain Python does, and a file of it is the same table."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.runtime.drafting.guess import Guess
from echovlm_edge.runtime.drafting.phrase_counts import FULL, ORDERS, PRIOR
from echovlm_edge.runtime.drafting.phrase_table import HEADER, PhraseTable

TEXTS = st.lists(st.lists(st.sampled_from([0, 1, 2, 151644]), max_size=12), max_size=8)


def counted(
    texts: Sequence[Sequence[int]], least_texts: int, groups: Sequence[int]
) -> dict[tuple[int, ...], tuple[int, float]]:
    """What follows each context, and its share, counted one occurrence at a time."""
    times, found = defaultdict[tuple[int, ...], Counter[int]](Counter), defaultdict[tuple[int, ...], set[int]](set)
    for text, group in zip(texts, groups, strict=True):
        for end in range(len(text)):
            for order in range(1, min(end, ORDERS) + 1):
                context = tuple(text[end - order : end])
                times[context][text[end]] += 1
                found[*context, text[end]].add(group)

    def share(context: tuple[int, ...], token: int) -> float:
        if not context:
            return 0
        followed = times[context]
        return (followed[token] + PRIOR * share(context[1:], token)) / (followed.total() + PRIOR)

    table = {}
    for context, followed in times.items():
        shared = [token for token in sorted(followed) if len(found[*context, token]) >= least_texts]
        if shared:
            token = max(shared, key=lambda token: share(context, token))
            table[context] = token, share(context, token)
    return table


@given(
    texts=TEXTS,
    least_texts=st.integers(1, 4),
    asked=st.lists(st.sampled_from([0, 1, 2, 151644, 7]), max_size=9),
    joined=st.booleans(),
)
def test_a_table_counts_as_plain_python_does(
    texts: list[list[int]], least_texts: int, asked: list[int], joined: bool
) -> None:
    groups = [number // 2 if joined else number for number in range(len(texts))]
    expected = counted(texts, least_texts, groups)
    table = PhraseTable.build(texts, least_texts, groups if joined else None)
    assert len(table) == len(expected)
    for text in (*map(list, expected), asked, *texts):
        known = [order for order in range(1, ORDERS + 1) if tuple(text[-order:]) in expected and order <= len(text)]
        guess = table.following(text)
        if not known:
            assert guess is None
            continue
        token, share = expected[tuple(text[-known[-1] :])]
        assert guess == Guess(token, pytest.approx(share, abs=1 / FULL), known[-1])


@given(texts=TEXTS)
def test_only_what_enough_texts_share_is_kept(texts: list[list[int]]) -> None:
    """A text of its own adds nothing, however often it repeats itself."""
    own = [3, 4, 5] * 9
    with_own, without = (PhraseTable.build(each, 2) for each in ([*texts, own], texts))
    assert with_own.keys.tolist() == without.keys.tolist()
    assert with_own.following([3, 4, 5, 3, 4]) is None


def test_a_text_ends_where_the_next_begins() -> None:
    table = PhraseTable.build([[1, 2], [3, 4], [3]], 1)
    assert table.following([2]) is None
    assert table.following([1]) == Guess(2, pytest.approx(1 / (1 + PRIOR), abs=1 / FULL), 1)


@pytest.mark.parametrize("texts", [[], [[1, 2, 3, 1, 2, 4], [1, 2, 3]]])
def test_a_saved_table_opens_as_it_was(texts: list[list[int]], tmp_path: Path) -> None:
    built = PhraseTable.build(texts, 1)
    built.save(tmp_path / "phrases.bin")
    opened = PhraseTable.open(tmp_path / "phrases.bin")
    for one, other in ((built.keys, opened.keys), (built.tokens, opened.tokens), (built.shares, opened.shares)):
        assert np.array_equal(one, other)
    assert [built.following(text) for text in ([1], [1, 2], [9])] == [
        opened.following(text) for text in ([1], [1, 2], [9])
    ]
    assert not opened.keys.flags.owndata  # mapped: not a copy in this process's memory
    assert (tmp_path / "phrases.bin").stat().st_size == HEADER + built.nbytes


@pytest.mark.parametrize("damage", [b"", b"PHRASES1", lambda whole: whole[:-1], lambda whole: b"p" + whole[1:]])
def test_a_file_that_is_no_table_is_refused(damage: object, tmp_path: Path) -> None:
    file = tmp_path / "phrases.bin"
    PhraseTable.build([[1, 2, 3]], 1).save(file)
    file.write_bytes(damage(file.read_bytes()) if callable(damage) else damage)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        PhraseTable.open(file)
