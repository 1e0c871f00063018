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


class TokenBytes(dict[int, bytes]):
    """The bytes of each token that was asked for, of a byte-level BPE tokenizer: special tokens and padding have none.

    A token is looked up when it is first written: listing a vocabulary of 152,000 takes longer than loading the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Read the added tokens, which are not written in the vocabulary's characters."""
        added = tokenizer.get_added_tokens_decoder().items()
        super().__init__({token_id: b"" if token.special else token.content.encode() for token_id, token in added})
        self._name, self._byte = tokenizer.id_to_token, byte_of_character()

    def __missing__(self, token_id: int) -> bytes:
        token = self._name(token_id) or ""
        try:
            data = bytes(self._byte[character] for character in token)
        except KeyError:  # no byte-level token: its own text, as in tokenizers' decoder
            data = token.encode()
        self[token_id] = data
        return data


class TokenText:
    """The text of every token, and the names of special tokens, which have no bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Of a byte-level BPE tokenizer."""
        self._bytes = TokenBytes(tokenizer)
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token_id: token.content for token_id, token in added.items() if token.special}

    def of(self, token_id: int) -> tuple[str, bytes]:
        """Return a token's text and bytes: a part of a character reads as U+FFFD, a special token by its name; padding has neither."""
        data = self._bytes[token_id]
        return self._special.get(token_id) or data.decode(errors="replace"), data

    def stream(self) -> TextStream:
        """Make a decoder for one generation."""
        return TextStream(self._bytes)


class TextStream:
    """Decodes UTF-8 incrementally: an incomplete character waits, and an invalid one becomes U+FFFD."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that it completed. A padding id beyond the vocabulary adds none."""
        return self._decoder.decode(self._token_bytes[token_id])

    def finish(self) -> str:
        """Return the rest of the text at the end."""
        return self._decoder.decode(b"", final=True)
