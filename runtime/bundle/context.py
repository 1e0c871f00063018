"""How long a context is served: all of the bundle's, or less where less is asked for."""

from __future__ import annotations

from echovlm_edge.runtime.contracts.errors import InvalidInput


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
