"""Join the words of a sentence that name organs and sides, and find for every other word the organs that it is about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from echovlm_edge.runtime.facts.tokens import Token
from echovlm_edge.runtime.facts.values import SIDED, Organ, Side
from echovlm_edge.runtime.facts.words import Lesion, Role

# Over the letters of `Role`. Every repetition is bounded: time stays linear in a sentence's length.
_SIDES = r"S[FP]{0,4}(?:AF{0,3}S[FP]{0,4}){0,3}"  # left and right
_PLACE = (
    rf"(?:{_SIDES}w{{0,2}}[FP]{{0,4}}O"  # left breast, left lobe of the thyroid
    r"|O[FP]{0,2}S[FP]{0,3}+(?!O)(?:AF{0,3}S[FP]{0,3}+(?!O))?"  # 甲状腺左叶, 甲状腺左叶及右叶
    rf"|O|{_SIDES})"  # the side of an organ that was named before
)
_GROUP = re.compile(rf"{_PLACE}(?:(?:,F{{0,3}}{_PLACE}){{0,10}},?AF{{0,3}}{_PLACE}){{0,6}}")
_ONE_PLACE = re.compile(_PLACE)


_LISTED = (Role.LESION, Role.FILLER, Role.ECHO, Role.MARGIN, Role.COMMA)


@dataclass(frozen=True)
class Place:
    """An organ, if the text names one, and its side, if it has one."""

    organ: Organ | None = None
    side: Side | None = None


NOWHERE = Place()
Places = tuple[Place, ...]  # named together: "liver, spleen and both kidneys"


@dataclass(frozen=True)
class Word:
    """A token with the organs that it is about; for an organ itself, those that are named together with it."""

    role: Role
    value: object
    places: Places


def placed(sentence: Sequence[Token], before: Place) -> tuple[list[Word], Place]:
    """Join the words that name organs, and place the others; returns the place of the next sentence's words, too.

    A word is about the organs that follow it after a preposition within its clause ("a nodule in the left breast"), else those that
    precede it in the sentence, else, if none does, those that end the sentence alone ("Simple cyst, left breast."). In a sentence
    that names no organ it is about that of the sentences `before`. A lesion that only one organ can have names that organ.
    """
    words = _joined(sentence, before)
    groups = [word.places for word in words if word.role is Role.ORGAN]
    kept = [word.role for word in words if word.role not in (Role.FILLER, Role.PART)]
    trailing = len(groups) == 1 and kept[-2:] == [Role.COMMA, Role.ORGAN]
    places: Places = groups[0] if trailing else (NOWHERE,) if groups else (before,)
    found, named = [], list[Place]()
    for word, following in zip(words, _after_a_preposition(words), strict=True):
        about = word.places or following or places
        if isinstance(word.value, Lesion) and (only := word.value.organ) and not word.value.elsewhere:
            about = tuple(place if place.organ is only else Place(only, _if_none(place)) for place in about)
        if word.role is Role.ORGAN or about is not (following or places):
            places = about
            named += about
        found.append(Word(word.role, word.value, about))
    return found, shared(named) if named else before


def _if_none(place: Place) -> Side | None:
    return None if place.organ else place.side


def shared(places: Sequence[Place]) -> Place:
    """Return what several places have in common: the organ, the side, neither or both; of both sides, no side."""
    organs, sides = {place.organ for place in places}, {place.side for place in places}
    side = sides.pop() if len(sides) == 1 else None
    return Place(organs.pop() if len(organs) == 1 else None, None if side is Side.BOTH else side)


def _joined(sentence: Sequence[Token], before: Place) -> list[Word]:
    letters = "".join(token.role.value for token in sentence)
    words: list[Word] = []
    at, organ = 0, before.organ
    for group in _GROUP.finditer(letters):
        words += [Word(token.role, token.value, ()) for token in sentence[at : group.start()]]
        at = group.end()
        places = []
        for place in _ONE_PLACE.finditer(group.group()):
            start, end = (group.start() + edge for edge in place.span())
            found = _place(sentence[start:end], organ)
            organ = found.organ
            places.append(found)
        elsewhere = _last_but_fillers(words) is Role.BESIDE
        words.append(Word(Role.OTHER if elsewhere else Role.ORGAN, None, tuple(dict.fromkeys(places))))
    return words + [Word(token.role, token.value, ()) for token in sentence[at:]]


def _place(naming: Sequence[Token], before: Organ | None) -> Place:
    organs = [cast("Organ | None", token.value) for token in naming if token.role is Role.ORGAN]
    sides = {cast(Side, token.value) for token in naming if token.role is Role.SIDE}
    side = sides.pop() if len(sides) == 1 else Side.BOTH if sides else None
    organ = organs[-1] if organs else before if before in SIDED else None
    return Place(organ, side if organ is None or organ in SIDED else None)


def _after_a_preposition(words: Sequence[Word]) -> list[Places | None]:
    after: list[Places | None] = []
    following: Places | None = None
    listed = False  # within a list that ends with "or" or "and": its commas part nothing
    for index in range(len(words) - 1, -1, -1):
        role = words[index].role
        if role is Role.ORGAN:
            following = (
                words[index].places if _last_but_fillers(words[max(0, index - 6) : index]) is Role.WITHIN else None
            )
        elif role in (Role.BUT, Role.NOT) or (role is Role.COMMA and not listed):
            following = None
        listed = role in (Role.OR, Role.AND) or (listed and role in _LISTED)
        after.append(following)
    return after[::-1]


def _last_but_fillers(words: Sequence[Word]) -> Role | None:
    return next((word.role for word in reversed(words) if word.role is not Role.FILLER), None)
