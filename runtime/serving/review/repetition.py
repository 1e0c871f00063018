"""A text that repeats itself, as a model does that has run into a loop."""

from __future__ import annotations

import re
from collections import Counter

from echovlm_edge.runtime.serving.review.reviewed import Reviewed

LONGEST = 60  # words or characters of a loop that is looked for
TIMES, LEAST = 3, 9  # a loop runs this often, and over this many words or characters in all
SAME_SENTENCES, SENTENCE_WORDS = 3, 8  # or a sentence of this many words or characters occurs this often

_WORD = re.compile(r"[a-z0-9]+|[^\W\d_a-z]", re.IGNORECASE)
_STAMMER = re.compile(r"([a-z]{2,12})\1{3}")  # within a word: calcificacificacificaci
_SENTENCE_END = re.compile(r"[.;!?。；！？\n]+(?=\D|$)")


def repeats_itself(reviewed: Reviewed) -> str | None:
    """Look for a passage that follows itself, also within a word, and for a sentence that is said again and again."""
    text = reviewed.text.lower()
    if not (_has_loop(_WORD.findall(text)) or _STAMMER.search(text) or _has_refrain(text)):
        return None
    return reviewed.say("The text repeats itself.", "文本存在重复内容。")


def _has_loop(words: list[str]) -> bool:
    """Check for a passage of up to LONGEST words that is written TIMES times in a row; takes time in proportion to the words."""
    for length in range(1, min(LONGEST, len(words) // TIMES) + 1):
        needed = max((TIMES - 1) * length, LEAST - length)
        run = 0
        for word, before in zip(words[length:], words, strict=False):
            run = run + 1 if word == before else 0
            if run >= needed:
                return True
    return False


def _has_refrain(text: str) -> bool:
    counts = Counter(tuple(_WORD.findall(sentence)) for sentence in _SENTENCE_END.split(text))
    return any(count >= SAME_SENTENCES and len(words) >= SENTENCE_WORDS for words, count in counts.items())
