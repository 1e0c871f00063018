"""A small byte-level BPE tokenizer whose first 256 tokens are the bytes by their number, with a special token that ends a text."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from echovlm_edge.runtime.prompting.detokenize import byte_of_character

END = 256


def byte_tokenizer(words: Sequence[str] = ()) -> Tokenizer:
    """Make one; `words` are tokens from 257 on, which no merge makes: only a model writes them."""
    of_byte = {byte: character for character, byte in byte_of_character().items()}
    vocabulary = {of_byte[byte]: byte for byte in range(256)} | {"<|im_end|>": END}
    vocabulary |= {
        "".join(of_byte[byte] for byte in word.encode()): END + 1 + number for number, word in enumerate(words)
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", special=True, normalized=False)])
    return tokenizer
