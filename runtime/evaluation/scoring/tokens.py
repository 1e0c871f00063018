"""Split a text into tokens in the two ways that the authors may have used; theirs, `normalize_word`, is not published."""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache

CHARACTERS, WORDS = "characters", "jieba"
_PIECE = re.compile(r"[a-z]+|\d+(?:\.\d+)?|\S")


def characters(text: str) -> list[str]:
    """Split a lower-case text: a Chinese character, a Latin word, a number and a sign are a token each."""
    return _PIECE.findall(text)


def words(text: str) -> list[str]:
    """Split a lower-case text into the words that jieba finds in it (Chinese), without white space."""
    return [word for word in _segmenter()(text) if word.strip()]


TOKENS: Mapping[str, Callable[[str], list[str]]] = {CHARACTERS: characters, WORDS: words}


@contextmanager
def older_syntax() -> Iterator[None]:
    """Import packages that were written for an older Python without its remarks on their regular expressions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@cache
def _segmenter() -> Callable[[str], list[str]]:
    """Load jieba's dictionary, without its cache: it would read that from a file that anybody on this machine can write."""
    with older_syntax():
        import jieba

    jieba.setLogLevel(logging.ERROR)
    segmenter = jieba.Tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        segmenter.tmp_dir = folder
        segmenter.initialize()
    cut: Callable[[str], list[str]] = segmenter.lcut
    return cut
