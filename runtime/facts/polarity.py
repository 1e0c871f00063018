"""Whether a sentence states, denies or leaves open what its words say."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence

from echovlm_edge.runtime.facts.places import Word
from echovlm_edge.runtime.facts.words import Role


class Polarity(enum.Enum):
    """What a sentence does with one of its words."""

    STATED = enum.auto()
    DENIED = enum.auto()
    GUESSED = enum.auto()  # "possible cyst": a measure of it is one nonetheless
    UNCLEAR = enum.auto()  # within what may be denied


STATED, DENIED, GUESSED, UNCLEAR = Polarity
_WEAKER = {STATED: GUESSED, DENIED: UNCLEAR}
# What may stand between a denial and what it denies: "no solid nodule", "未见明显低回声结节".
_BETWEEN = frozenset(
    {
        Role.FILLER,
        Role.ECHO,
        Role.MARGIN,
        Role.SIDE,
        Role.PART,
        Role.ORGAN,
        Role.SIZE,
        Role.ONE,
        Role.OR,
        Role.AND,
        Role.SEE,
    }
)
_LIST_ITEM = frozenset({Role.FILLER, Role.ECHO, Role.MARGIN, Role.OR, Role.AND, Role.ORGAN})


def polarities(words: Sequence[Word]) -> list[Polarity]:
    """Find the polarity of each word of a sentence.

    A denial reaches to the end of its clause, and past a comma where a list with "or" continues. Unclear is what follows a denial of an
    unknown word ("no flow in the nodule") or of another denial, and what may or may not belong to a list of what is denied.
    """
    found: list[Polarity] = []
    or_ahead = _or_ahead(words)
    state, open_list = STATED, False
    for start, end in _clauses(words):
        if state is not STATED and open_list and (listed := _list_continues(words[start:end], or_ahead[start])):
            state = state if listed is DENIED else listed
        else:
            state = STATED
        clause, state, open_list = _clause(words[start:end], state)
        found += clause
    return found


def _clauses(words: Sequence[Word]) -> Iterator[tuple[int, int]]:
    """Yield where each clause begins and ends; the comma or word before it is its first."""
    start = 0
    for index, word in enumerate(words):
        if word.role in (Role.COMMA, Role.BUT) and index > start:
            yield start, index
            start = index
    yield start, len(words)


def _or_ahead(words: Sequence[Word]) -> list[bool]:
    """Say for each word whether a list of its sentence still has an "or" to come."""
    ahead, follows = [], False
    for word in reversed(words):
        if word.role is Role.OR:
            follows = True
        elif word.role in (Role.BUT, Role.NOT, Role.SEE, Role.IS):
            follows = False
        ahead.append(follows)
    return ahead[::-1]


def _list_continues(clause: Sequence[Word], or_ahead: bool) -> Polarity | None:
    """Return DENIED if a clause after a comma is an item of the list before, UNCLEAR if it may be, None if not."""
    if clause[0].role is Role.BUT:
        return None
    named = False
    for word in clause[1:]:
        if word.role is Role.LESION:
            return DENIED if or_ahead else None if named else UNCLEAR
        if word.role not in _LIST_ITEM:
            return None
        named = named or word.role is Role.ORGAN
    return None


def _clause(words: Sequence[Word], state: Polarity) -> tuple[list[Polarity], Polarity, bool]:
    """Find the polarities within a clause that begins in `state`; returns its last state too, and whether a list may continue it."""
    found: list[Polarity] = []
    names = state is not STATED  # whether the denial has named what it denies
    ended, guess, lesion = False, False, False
    for index, word in enumerate(words):
        role = word.role
        if role is Role.NOT:
            state = DENIED if state is STATED or (state is DENIED and names) else UNCLEAR
            names = ended = False
        elif role is Role.NOT_BEFORE and state is STATED:
            found = [DENIED] * index
        elif role is Role.UNSURE:
            guess = True
        elif role is Role.OR and state is STATED:
            guess = guess or lesion
        elif state is DENIED:
            if not names and role is not Role.LESION and role not in _BETWEEN:
                state = UNCLEAR
            elif names and role is Role.SEE:
                state = STATED
            elif names and (role in (Role.ONE, Role.WITH) or (role is Role.AND and _begins_a_clause(words, index + 1))):
                state = UNCLEAR
            ended = ended or role is Role.IS
        names = names or role is Role.LESION
        lesion = lesion or role is Role.LESION
        found.append(state)
    if guess:
        found = [_WEAKER.get(polarity, polarity) for polarity in found]
    return found, state, names and not ended


def _begins_a_clause(words: Sequence[Word], index: int) -> bool:
    return index < len(words) and words[index].role in (Role.ORGAN, Role.ONE)
