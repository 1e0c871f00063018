"""How long a context is served and how many reports together: all that the bundle has, or less where less is asked for."""

from __future__ import annotations

from echovlm_edge.runtime.contracts.errors import InvalidInput

SLOTS = 8  # unless another number is asked for


def context_length(allowed: int, asked: int | None) -> int:
    """Return the context to serve, in tokens: what is `asked` for, or all that the bundle has `allowed`.

    Raises:
        InvalidInput: more is asked for than the bundle allows.
    """
    if asked and asked > allowed:
        raise InvalidInput(
            f"--max-sequence {asked} is more than the bundle's context of {allowed} tokens: give at most that many, or build the "
            "bundle with a larger --max-sequence."
        )
    return asked or allowed


def slot_count(allowed: int | None, asked: int | None) -> int:
    """Return how many reports to decode together: what is `asked` for, or SLOTS, or all that the bundle has `allowed` if fewer.

    Raises:
        InvalidInput: more is asked for than the bundle allows.
    """
    if asked and allowed and asked > allowed:
        raise InvalidInput(
            f"--slots {asked} is more than the {allowed} that the bundle decodes together: give at most that many, or build the bundle "
            f"with --max-batch {asked}."
        )
    return asked or min(SLOTS, allowed or SLOTS)
