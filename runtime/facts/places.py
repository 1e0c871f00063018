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
_SIDES = r"S[FPR]{0,4}(?:AF{0,3}S[FPR]{0,4}){0,3}"  # left and right
_PLACE = (
    rf"(?:{_SIDES}w{{0,2}}[FPR]{{0,4}}O"  # left breast, left lobe of the thyroid, left axillary lymph node
    r"|O[FP]{0,2}S[FP]{0,3}+(?!O)(?:AF{0,3}S[FP]{0,3}+(?!O))?"  # 甲状腺左叶, 甲状腺左叶及右叶
    rf"|R{{0,2}}O|{_SIDES}|R)"  # the side of an organ that was named before, or of an area
)
_GROUP = re.compile(rf"{_PLACE}(?:(?:,F{{0,3}}{_PLACE}){{0,10}},?AF{{0,3}}{_PLACE}){{0,6}}")
_ONE_PLACE = re.compile(_PLACE)


_SIDE_ALONE = "side alone"  # the value of a place that names no organ
_NEAR = 6  # words between a preposition and its organ: in the proximal left internal carotid artery
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
    precede it in the sentence, else, if none does, those that end the sentence alone ("Simple cyst, left breast.", "Normal liver.").
    In a sentence that names no organ it is about that of the sentences `before`. A lesion that only one organ can have names that organ.
    """
    words = _joined(sentence, before)
    groups = [word.places for word in words if word.role is Role.ORGAN]
    kept = [word.role for word in words if word.role not in (Role.FILLER, Role.PART)]
    trailing = len(groups) == 1 and kept[-2:] in ([Role.COMMA, Role.ORGAN], [Role.NORMAL, Role.ORGAN])
    places: Places = groups[0] if trailing else (NOWHERE,) if groups else (before,)
    found, named = [], list[Place]()
    for word, following in zip(words, _after_a_preposition(words), strict=True):
        about = word.places or following or places
        if isinstance(word.value, Lesion) and (only := word.value.organ) and not word.value.elsewhere:
            about = tuple(place if place.organ is only else Place(only, _if_none(place)) for place in about)
        if isinstance(word.value, Lesion) and word.value.anywhere and not groups:
            about = (NOWHERE,)
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
    at, organ, area = 0, before.organ, NOWHERE
    for group in _GROUP.finditer(letters):
        words += [Word(token.role, token.value, ()) for token in sentence[at : group.start()]]
        at = group.end()
        places = []
        for place in _ONE_PLACE.finditer(group.group()):
            start, end = (group.start() + edge for edge in place.span())
            found = _place(sentence[start:end], organ)
            if found.organ in SIDED and not found.side and area.side:
                found = Place(found.organ, area.side)  # 左颈部见多发淋巴结
            organ, area = found.organ, found if "R" in place.group() else NOWHERE
            places.append(found)
        role = Role.OTHER if _last_but((Role.FILLER,), words) is Role.BESIDE else Role.ORGAN
        words.append(Word(role, _SIDE_ALONE if "O" not in group.group() else None, tuple(dict.fromkeys(places))))
    return words + [Word(token.role, token.value, ()) for token in sentence[at:]]


def _place(naming: Sequence[Token], before: Organ | None) -> Place:
    organs = [cast("Organ | None", token.value) for token in naming if token.role is Role.ORGAN]
    sides = {cast(Side, token.value) for token in naming if token.role is Role.SIDE}
    side = sides.pop() if len(sides) == 1 else Side.BOTH if sides else None
    areas = any(token.role is Role.AREA for token in naming)
    organ = organs[-1] if organs else before if before in SIDED and not areas else None
    return Place(organ, side if organ is None or organ in SIDED else None)


def _after_a_preposition(words: Sequence[Word]) -> list[Places | None]:
    after: list[Places | None] = []
    following: Places | None = None
    listed = False  # within a list that ends with "or" or "and": its commas part nothing
    for index in range(len(words) - 1, -1, -1):
        role = words[index].role
        if role is Role.ORGAN:
            within = _last_but((Role.FILLER, Role.OTHER), words[max(0, index - _NEAR) : index]) is Role.WITHIN
            adverb = words[index].value is _SIDE_ALONE and _ends_its_clause(words, index)  # no stone bilaterally
            following = words[index].places if within or adverb else None
        elif role in (Role.BUT, Role.NOT) or (role is Role.COMMA and not listed):
            following = None
        listed = role in (Role.OR, Role.AND) or (listed and role in _LISTED)
        after.append(following)
    return after[::-1]


def _ends_its_clause(words: Sequence[Word], index: int) -> bool:
    return index + 1 == len(words) or words[index + 1].role in (Role.COMMA, Role.BUT)


def _last_but(passed: tuple[Role, ...], words: Sequence[Word]) -> Role | None:
    return next((word.role for word in reversed(words) if word.role not in passed), None)
