"""The table of phrases that a bundle brings: its file `phrases.bin`, which bundle.json lists with its hash."""

from __future__ import annotations

from echovlm_edge.runtime.bundle.manifest import FIX, Bundle, describe_file, reading
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.drafting.phrase_table import PhraseTable

PHRASES = "phrases.bin"


def bundle_phrases(bundle: Bundle) -> PhraseTable | None:
    """Map the bundle's table of phrases, after a check of its hash; None for a bundle that has none.

    Raises:
        NotPossibleHere: the file has changed since it was built, or is no table of this model's tokens.
    """
    if bundle.manifest.phrases is None:
        return None
    file = bundle.path / PHRASES
    expected = next((each for each in bundle.manifest.files if each.name == PHRASES), None)
    with reading(file):
        if expected is None or describe_file(bundle.path, PHRASES) != expected:
            raise NotPossibleHere(f"The bundle's file {file} has changed since it was built (its hash differs): {FIX}.")
        table = PhraseTable.open(file)
        if len(table) and not 0 <= table.tokens.min() <= table.tokens.max() < bundle.manifest.model.vocab_size:
            raise ValueError("a token outside the vocabulary")
    return table
