"""Read the facts of a report. A fact is read only where the rules are sure: what is ambiguous is left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

from echovlm_edge.runtime.facts.places import NOWHERE, Place, Word, placed, shared
from echovlm_edge.runtime.facts.polarity import DENIED, GUESSED, STATED, Polarity, polarities
from echovlm_edge.runtime.facts.tokens import Token, tokens
from echovlm_edge.runtime.facts.values import Fact, Facts, Kind, Organ, Side
from echovlm_edge.runtime.facts.words import GENERIC, Echo, Lesion, Role

_CATEGORIES = {Role.BIRADS: (Kind.BIRADS, Organ.BREAST), Role.TIRADS: (Kind.TIRADS, Organ.THYROID)}
_QUIET = (Role.FILLER, Role.PART)
_NEAR = 8  # words that are looked back or ahead


def read_facts(text: str) -> Facts:
    """Read the facts of an English or Chinese ultrasound report, or a mixed one, in time that is linear in its length.

    An organ holds for the sentences after it, until another is named. A side stays with its organ. A fact that only leaves out the
    organ or side of another with the same value is not listed, nor is an unnamed "lesion" where one is named.
    """
    found: dict[Fact, None] = {}
    before = NOWHERE
    for sentence, question in _sentences(tokens(text)):
        if question:
            continue
        words, before = placed(sentence, before)
        for fact in _facts(words, polarities(words)):
            found |= dict.fromkeys((*_whereabouts(fact), fact))
    return Facts(_distinct(found))


def _whereabouts(fact: Fact) -> Iterator[Fact]:
    if fact.organ:
        yield Fact(Kind.ORGAN, fact.organ, None)
    if fact.side:
        yield Fact(Kind.SIDE, fact.organ, fact.side)


def _sentences(read: Iterable[Token]) -> Iterator[tuple[list[Token], bool]]:
    """Cut tokens into sentences, each with whether it is a question."""
    sentence: list[Token] = []
    for token in read:
        if token.role not in (Role.END, Role.QUESTION):
            sentence.append(token)
        elif sentence:
            yield sentence, token.role is Role.QUESTION
            sentence = []
    if sentence:
        yield sentence, False


def _facts(words: Sequence[Word], said: Sequence[Polarity]) -> Iterator[Fact]:
    has_lesion = any(map(_is_focal, words, said))
    tissue = False  # the words are about an organ's own
    for index, (word, polarity) in enumerate(zip(words, said, strict=True)):
        places = word.places
        match word.role:
            case Role.ORGAN:
                tissue = False
                for place in _single_sides(places):
                    yield from _whereabouts(Fact(Kind.ORGAN, place.organ, place.side))
            case Role.TISSUE:
                tissue = True
            case Role.LESION if polarity in (STATED, DENIED) and not _is_adjective(words, index):
                yield from _lesion(cast(Lesion, word.value), polarity, places)
            case Role.NORMAL if polarity is STATED and _is_alone(words, index):
                yield from _lesion(Lesion(GENERIC), DENIED, places)
            case Role.BIRADS | Role.TIRADS:
                kind, organ = _CATEGORIES[word.role]
                place = shared(places)
                yield Fact(kind, organ, place.side if place.organ is organ else None, cast(str, word.value))
            case Role.ECHO if polarity is STATED and not tissue and _next(words, index) is not Role.BESIDE:
                echo = cast(Echo, word.value)
                if echo.focal or has_lesion or _previous(words, index) in (Role.SEE, Role.ONE):
                    yield _measured(Kind.ECHOGENICITY, places, echo.name)
            case Role.MARGIN if polarity in (STATED, GUESSED) and has_lesion:
                yield _measured(Kind.MARGIN, places, cast(str, word.value))
            case Role.SIZE if polarity in (STATED, GUESSED) and not _is_distance(words, index):
                yield _measured(Kind.SIZE, places, cast(float, word.value))


def _is_focal(word: Word, polarity: Polarity) -> bool:
    return polarity is STATED and (word.role is Role.LESION or (isinstance(word.value, Echo) and word.value.focal))


def _lesion(lesion: Lesion, polarity: Polarity, places: Sequence[Place]) -> Iterator[Fact]:
    value = lesion.name if polarity is STATED else f"no {lesion.name}"
    for place in _single_sides(places):
        if place.organ is lesion.organ or not lesion.elsewhere:
            yield Fact(Kind.LESION, place.organ, place.side, value)


def _measured(kind: Kind, places: Sequence[Place], value: str | float) -> Fact:
    """Make the fact of one of the lesions that the places have: it is not known which."""
    place = shared(places)
    return Fact(kind, place.organ, place.side, value)


def _single_sides(places: Iterable[Place]) -> Iterator[Place]:
    for place in places:
        if place.side is Side.BOTH:
            yield from (Place(place.organ, Side.LEFT), Place(place.organ, Side.RIGHT))
        else:
            yield place


def _is_adjective(words: Sequence[Word], index: int) -> bool:
    """Check for 异常 in 异常肿大淋巴结."""
    return cast(Lesion, words[index].value).name == GENERIC and _next(words, index) is Role.LESION


def _is_alone(words: Sequence[Word], index: int) -> bool:
    """Check that "normal" is said about nothing but the organ before it, or the whole: not "normal in size", "形态正常"."""
    follows = words[index + 1 : index + 1 + _NEAR]
    before = _previous(words, index, (*_QUIET, Role.COMMA, Role.IS))
    if before is Role.END and follows and follows[0].role is Role.ORGAN:
        follows = follows[1:]  # Normal left breast.
    return before in (Role.ORGAN, Role.END) and (not follows or follows[0].role in (Role.COMMA, Role.BUT))


def _is_distance(words: Sequence[Word], index: int) -> bool:
    before = _previous(words, index), _previous(words, index, (*_QUIET, Role.OTHER))
    return before[0] is Role.BOUND or Role.BESIDE in (before[1], _next(words, index))


def _previous(words: Sequence[Word], index: int, passed: tuple[Role, ...] = _QUIET) -> Role:
    """Return the role of the nearest word before one, those `passed` aside; END at the sentence's start."""
    return next(
        (word.role for word in reversed(words[max(0, index - _NEAR) : index]) if word.role not in passed), Role.END
    )


def _next(words: Sequence[Word], index: int) -> Role:
    return next((word.role for word in words[index + 1 : index + _NEAR] if word.role not in _QUIET), Role.END)


def _distinct(found: Iterable[Fact]) -> tuple[Fact, ...]:
    """Leave out facts that say less than another: without its organ or side, or "lesion" for one that is named."""
    facts = list(found)
    known = set(facts)
    named = {(fact.organ, fact.side) for fact in facts if fact.kind is Kind.LESION and not _is_generic(fact)}
    fuller = {
        (fact.kind, organ, side, fact.value)
        for fact in known
        for organ, side in ((None, None), (None, fact.side), (fact.organ, None))
        if (organ, side) != (fact.organ, fact.side)
    }
    places = {(organ, side) for place in named for organ in (place[0], None) for side in (place[1], None)} | named
    return tuple(
        fact
        for fact in facts
        if (fact.kind, fact.organ, fact.side, fact.value) not in fuller
        and not (fact.kind is Kind.LESION and fact.value == GENERIC and (fact.organ, fact.side) in places)
    )


def _is_generic(fact: Fact) -> bool:
    return fact.value == GENERIC or str(fact.value).startswith("no ")
