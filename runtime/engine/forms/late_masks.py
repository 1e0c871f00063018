"""How long the decoder waits for masks: never long while other sequences could go on."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, wait

from echovlm_edge.runtime.engine.forms.form_state import FormState

AT_MOST, OF_A_STEP = 0.002, 0.25  # seconds, and the share of a step: the larger one
ALONE = 0.01  # seconds, while nobody else is in the step: then who arrives


def wait_for_masks(forms: Sequence[FormState | None], step: float | None) -> None:
    """Wait for the masks of a step; whose are late then sits out until they are there, and repeats the step.

    Args:
        forms: of each sequence in the step, None for those without one.
        step: how long a step takes, in seconds, if that is known.
    """
    late = [form for form in forms if form and not form.ready]
    alone = len(late) == len(forms)
    waited_for = [form.coming for form in late if form.coming and (alone or not form.slow)]
    if waited_for:
        wait(waited_for, ALONE if alone else max(AT_MOST, OF_A_STEP * (step or 0.0)))


def wait_for_any(forms: Sequence[FormState | None]) -> None:
    """Wait a moment for the first mask of sequences that sit out, where nothing else is to do."""
    coming = [form.coming for form in forms if form and form.coming]
    if coming:
        wait(coming, ALONE, FIRST_COMPLETED)
