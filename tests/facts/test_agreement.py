"""Two reports compared by their facts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.runtime.facts import Counts, Kind, agreement, read_facts
from tests.support.fact_sentences import sentences

REFERENCE = "Left breast: hypoechoic nodule, 12 x 8 mm, well-defined, BI-RADS 3. Right breast: no mass."


def compared(candidate: str, reference: str = REFERENCE) -> dict[Kind, Counts]:
    return dict(agreement(read_facts(reference), read_facts(candidate)).by_kind)


@given(st.sampled_from([text for text, _ in sentences()]))
def test_a_report_agrees_with_itself(text: str) -> None:
    stated = read_facts(text)
    for kind, counts in agreement(stated, stated).by_kind.items():
        asked = len(list(stated.of(kind)))
        assert counts == Counts(asked, asked, 0)


def test_the_same_in_the_other_language_agrees() -> None:
    chinese = compared("左乳见低回声结节，大小约1.2×0.8cm，边界清，BI-RADS 3类。右乳未见明显肿块。")
    assert chinese == compared(REFERENCE)


def test_what_is_missing_is_not_right() -> None:
    counts = compared("Right breast: no mass.")
    assert counts[Kind.LESION] == Counts(2, 1, 0)
    assert counts[Kind.SIDE] == Counts(2, 1, 0)
    assert counts[Kind.SIZE] == Counts(1, 0, 0)


def test_what_is_elsewhere_or_denied_is_invented() -> None:
    assert compared("Right breast: hypoechoic nodule.")[Kind.LESION] == Counts(2, 0, 1)
    assert compared("Left breast: no nodule.")[Kind.LESION] == Counts(2, 0, 1)
    assert compared("Left thyroid lobe: nodule.")[Kind.LESION] == Counts(2, 0, 1)


def test_a_side_that_is_left_out_costs_the_side_alone() -> None:
    counts = compared("Hypoechoic nodule of the breast, 12 mm.")
    assert (counts[Kind.LESION], counts[Kind.SIZE], counts[Kind.SIDE]) == (
        Counts(2, 1, 0),
        Counts(1, 1, 0),
        Counts(2, 0, 0),
    )


def test_sizes_are_compared_within_a_fifth_and_each_once() -> None:
    assert compared("Left breast: nodule, 14 mm.")[Kind.SIZE] == Counts(1, 1, 0)
    assert compared("Left breast: nodule, 15 mm.")[Kind.SIZE] == Counts(1, 0, 1)
    two = "Left breast: nodules of 10 mm and 11 mm."
    assert compared("Left breast: nodule of 10 mm.", two)[Kind.SIZE] == Counts(2, 1, 0)
    assert compared("Left breast: nodules of 11.5 mm and 9.5 mm.", two)[Kind.SIZE] == Counts(2, 2, 0)
