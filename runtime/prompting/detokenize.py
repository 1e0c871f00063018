"""Convert tokens to text as they are generated, in complete characters only, even where tokens split one."""

from __future__ import annotations

import codecs

from tokenizers import Tokenizer, pre_tokenizers


def byte_of_character() -> dict[str, int]:
    """Return the byte that each character of a byte-level BPE vocabulary stands for."""
    # Byte-level BPE writes each byte as one printable character: printable Latin-1 as itself, the others from U+0100 on.
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(shifted)}
    assert set(table) == set(pre_tokenizers.ByteLevel.alphabet())
    return table


class TokenText:
    """The bytes of every token of a byte-level BPE tokenizer, and the names of special tokens, which have none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Read the tokenizer's vocabulary once."""
        table = byte_of_character()
        added = tokenizer.get_added_tokens_decoder()
        self._bytes: dict[int, bytes] = {}
        self._special = {token_id: token.content for token_id, token in added.items() if token.special}
        for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
            if token_id in added:
                self._bytes[token_id] = b"" if added[token_id].special else token.encode()
            else:
                self._bytes[token_id] = bytes(table[character] for character in token)

    def of(self, token_id: int) -> tuple[str, bytes]:
        """Return a token's text and bytes: a part of a character reads as U+FFFD, a special token by its name; padding has neither."""
        data = self._bytes.get(token_id, b"")
        return self._special.get(token_id) or data.decode(errors="replace"), data

    def stream(self) -> TextStream:
        """Make a decoder for one generation."""
        return TextStream(self._bytes)


class TextStream:
    """Decodes UTF-8 incrementally: an incomplete character waits, and an invalid one becomes U+FFFD."""

    def __init__(self, token_bytes: dict[int, bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that it completed. A padding id beyond the vocabulary adds none."""
        return self._decoder.decode(self._token_bytes.get(token_id, b""))

    def finish(self) -> str:
        """Return the rest of the text at the end."""
        return self._decoder.decode(b"", final=True)
