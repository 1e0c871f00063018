"""A text ends before the first of its stop texts, however it is cut into pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.runtime.engine.text.stop_text import StopText

LETTERS = st.text("ab", max_size=3)


@given(pieces=st.lists(LETTERS, max_size=8), stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_what_passes_is_the_text_before_the_first_stop_text(pieces: list[str], stops: list[str]) -> None:
    stop, passed = StopText(stops), ""
    whole = ""
    for piece in pieces:
        whole += piece
        passed += stop.push(piece)
        found = [whole.index(one) for one in stops if one in whole]
        assert stop.reached == bool(found)
        if found:
            assert passed == whole[: min(found)]
            assert stop.push("ab") + stop.finish() == ""
            return
        assert whole.startswith(passed)
        held = whole[len(passed) :]
        assert not held or any(one.startswith(held) for one in stops)  # no more than needs be
    assert passed + stop.finish() == whole
