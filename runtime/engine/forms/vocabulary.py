"""Read a bundle's vocabulary for forms, once for all engines of the process that have the same one."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from hashlib import sha256
from secrets import token_hex
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What llguidance knows of a tokenizer's tokens: 126 MB of the published one."""

    tokens: LLTokenizer = field(repr=False)


_reading = threading.Lock()
_read: WeakValueDictionary[bytes, Vocabulary] = WeakValueDictionary()


def read_vocabulary(tokenizer: Tokenizer, vocab_size: int, stop_token_ids: Collection[int]) -> Vocabulary:
    """Read the vocabulary of a byte-level BPE tokenizer whose ids are padded to `vocab_size`.

    It takes 1.5 s of the published one, in which no other Python thread runs, and a tenth of that where an engine has it already: a
    server reads it before it serves.
    """
    from llguidance import LLTokenizer  # 3 MB, for those that offer forms

    with _reading:
        described, stops = tokenizer.to_str(), sorted(stop_token_ids)
        name = sha256(f"{vocab_size} {stops} {described}".encode()).digest()
        if (known := _read.get(name)) is None:
            plain = _of_plain_text(described)
            known = Vocabulary(LLTokenizer(plain, n_vocab=vocab_size, eos_token=stops))
            _read[name] = known
        return known


def _of_plain_text(described: str) -> str:
    """Describe a tokenizer that takes every text as it is: no part of it is a special token's name, and no character is replaced.

    Otherwise a form's own text could be the token that ends the answer, or one that the form's bytes are not.
    """
    parts = json.loads(described)
    for token in parts["added_tokens"]:
        if token["special"]:
            token["content"] = f"<{token_hex(16)}>"
    return json.dumps(parts | {"normalizer": None}, ensure_ascii=False)
