"""Convert a conversation to tokens and positions: chat template, image placeholders, M-RoPE positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray
from tokenizers import Tokenizer

from echovlm_edge.runtime.bundle.manifest import CHAT_TEMPLATE, FIX, TOKENIZER, Bundle, reading
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere

PROBE = "What is seen?"
Grid = tuple[int, int, int]  # one image's patches: time, height, width
# Of all tokens before a reply and its text: the tokens that it was written with, if it is an own one.
FindReply = Callable[[Sequence[int], str], Sequence[int] | None]


@dataclass(frozen=True)
class PromptTurn:
    """One turn of a conversation: the grids of its images, its text, and the reply's; the present turn has no reply yet."""

    text: str = field(repr=False)
    grids: Sequence[Grid] = ()
    reply: str = field(default="", repr=False)


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt.

    Attributes:
        token_ids: int64 [n]; every merged patch has one image token.
        positions: int64 [3, n], M-RoPE's temporal, height and width position of each token.
        image_rows: int64 [m], which tokens are image tokens, in the images' order.
        next_position: the position of the first generated token, on all three axes.
    """

    token_ids: NDArray[np.int64] = field(repr=False)
    positions: NDArray[np.int64]
    image_rows: NDArray[np.int64]
    next_position: int


class PromptBuilder:
    """Renders a checkpoint's own chat template in a sandbox and tokenizes it.

    Raises:
        NotPossibleHere: the template cannot be used, or the tokenizer has no token with the image token's id.
    """

    def __init__(self, tokenizer: Tokenizer, template: str, image_token_id: int, merge_size: int) -> None:
        """Compile and check the template; `merge_size` is how many patches are merged along each axis into one token."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        try:
            self._template = environment.from_string(template)
        except Exception as error:  # Jinja's own, and Python's where its compiler gives up
            raise NotPossibleHere(f"The chat template cannot be compiled ({type(error).__name__}): {FIX}.") from None
        image_token = tokenizer.id_to_token(image_token_id)
        if image_token is None:
            raise NotPossibleHere(
                f"The tokenizer has no token {image_token_id}, which the config calls the image token."
            )
        self.tokenizer, self._image_token, self._image_token_id = tokenizer, image_token, image_token_id
        self._merge_size = merge_size
        # Cached, as a study's report has the same beginning as its preparation. It contains nothing of the user's text.
        self._up_to_last_image = lru_cache(maxsize=16)(self._build_up_to_last_image)
        self._check_template()

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> PromptBuilder:
        """Read the bundle's own template and tokenizer.

        Raises:
            NotPossibleHere: one of the files is damaged; the sentence names it.
        """
        model, tokenizer_file, template_file = (
            bundle.manifest.model,
            bundle.path / TOKENIZER,
            bundle.path / CHAT_TEMPLATE,
        )
        with reading(tokenizer_file):
            tokenizer = Tokenizer.from_str(bundle.text(TOKENIZER))
            tokens = tokenizer.get_vocab().values()
        if max(tokens, default=-1) >= model.vocab_size or tokenizer.id_to_token(model.image_token_id) is None:
            raise NotPossibleHere(f"The bundle's file {tokenizer_file} is not its model's: {FIX}.")
        template = bundle.text(CHAT_TEMPLATE)
        try:
            return cls(tokenizer, template, model.image_token_id, model.merge_size)
        except NotPossibleHere as error:
            raise NotPossibleHere(f"In {template_file}: {error}") from None

    def build(self, text: str, grids: Sequence[Grid]) -> Prompt:
        """Build the prompt of one user turn: the images, then `text`.

        Raises:
            InvalidInput: the text holds a special token, which could forge the conversation's structure.
        """
        self._refuse_special_tokens(text)
        *pieces, last = self.render(text, len(grids)).split(self._image_token)
        beginning = self._up_to_last_image(tuple(pieces), tuple(grids))
        tokens = np.array(self._tokens(last), dtype=np.int64)
        position = beginning.next_position
        return Prompt(
            np.concatenate((beginning.token_ids, tokens)),
            np.concatenate((beginning.positions, _counted(position, len(tokens))), axis=1),
            beginning.image_rows,
            position + len(tokens),
        )

    def build_conversation(self, system: str, turns: Sequence[PromptTurn], find_reply: FindReply) -> Prompt:
        """Build the prompt of a conversation whose last turn is to be answered.

        A reply of this model's own is in the prompt with the tokens that it was written with, so that what was computed for them can
        be reused: their text can be tokenized in several ways. Any other reply is tokenized as part of the rendered template.

        Args:
            system: the system prompt; empty for the template's own.
            turns: the earlier turns and the present one, at least one.
            find_reply: returns the tokens of an own reply, by all tokens before it and its text; None for any other text.

        Raises:
            InvalidInput: a text holds a special token, which could forge the conversation's structure.
            NotPossibleHere: the template renders no system prompt, or one turn only.
        """
        *earlier, present = turns
        if not (system or earlier):
            return self.build(present.text, present.grids)
        for text in (system, *(text for turn in turns for text in (turn.text, turn.reply))):
            self._refuse_special_tokens(text)
        if not self._converses:
            raise NotPossibleHere(
                "The bundle's chat template renders no system prompt and one turn only: ask each question by itself."
            )
        # The image token stands for each image, and for each reply.
        inserts = list[Grid | str]()
        for turn in earlier:
            inserts += [*turn.grids, turn.reply]
        inserts += present.grids
        rendered = self._render(_messages(system, turns, self._image_token))
        return self._assembled(rendered.split(self._image_token), inserts, find_reply)

    def _assembled(self, pieces: Sequence[str], inserts: Sequence[Grid | str], find_reply: FindReply) -> Prompt:
        """Join the template's pieces with what stands between them: images, and replies as tokens or as text."""
        ids, texts, grids = list[int](), [0], list[Grid]()  # texts: tokens before, between and after the images

        def add(tokens: Sequence[int]) -> None:
            ids.extend(tokens)
            texts[-1] += len(tokens)

        pending = pieces[0]
        for insert, piece in zip(inserts, pieces[1:], strict=True):
            if isinstance(insert, str):
                closed, rest = self._closed(pending)
                add(closed)
                before = self._tokens(rest)
                reply = find_reply([*ids, *before], insert)
                if reply is None:  # text that belongs to the same run of tokens as the pieces around it
                    pending = rest + insert + piece
                    continue
                add(before)
                add(reply)
            else:
                add(self._tokens(pending))
                ids.extend([self._image_token_id] * merged_patches(insert, self._merge_size))
                texts.append(0)
                grids.append(insert)
            pending = piece
        add(self._tokens(pending))
        token_ids = np.array(ids, dtype=np.int64)
        positions, next_position = rope_positions(texts, grids, self._merge_size)
        image_rows = np.flatnonzero(token_ids == self._image_token_id)
        return Prompt(token_ids, positions, image_rows, next_position)

    def _build_up_to_last_image(self, pieces: tuple[str, ...], grids: tuple[Grid, ...]) -> Prompt:
        """Build the prompt up to the last image: each image with the text before it."""
        tokens = {piece: self._tokens(piece) for piece in set(pieces)}  # the pieces between images are all the same
        token_ids = list[int]()
        for piece, grid in zip(pieces, grids, strict=True):
            token_ids += tokens[piece] + [self._image_token_id] * merged_patches(grid, self._merge_size)
        ids = np.array(token_ids, dtype=np.int64)
        texts = [len(tokens[piece]) for piece in pieces]
        positions, next_position = rope_positions([*texts, 0], grids, self._merge_size)
        return Prompt(ids, positions, np.flatnonzero(ids == self._image_token_id), next_position)

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _closed(self, text: str) -> tuple[list[int], str]:
        """Tokenize a text up to its last special token, which no later text changes; returns those tokens and the rest of the text."""
        found = self.tokenizer.encode(text, add_special_tokens=False)
        last = max((place for place, token in enumerate(found.ids) if token in self.special_ids), default=-1)
        return (found.ids[: last + 1], text[found.offsets[last][1] :]) if last >= 0 else ([], text)

    def render(self, text: str, images: int) -> str:
        """Render the chat template, with one placeholder per image."""
        return self._render([_asked(text, images)])

    def render_conversation(self, system: str, turns: Sequence[PromptTurn]) -> str:
        """Render the chat template of a conversation, with one placeholder per image."""
        return self._render(_messages(system, turns))

    def _render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        try:
            return self._template.render(messages=messages, add_generation_prompt=True)
        except Exception as error:  # a faulty template can raise anything; the error's text could quote the user's
            raise NotPossibleHere(f"The chat template cannot be rendered ({type(error).__name__}): {FIX}.") from None

    def _check_template(self) -> None:
        """Check that the rendered template contains the user's text, and before it a placeholder for every image."""
        for images in range(3):
            *pieces, last = self.render(PROBE, images).split(self._image_token)
            if len(pieces) != images or PROBE not in last:
                raise NotPossibleHere(f"The chat template does not render text and images: {FIX}.")

    @cached_property
    def _converses(self) -> bool:
        """Whether the template renders a system prompt and several turns in order, and every text unchanged."""
        system, turns = " 0 ", [PromptTurn(" 1 ", [(1, 2, 2)], " 2 "), PromptTurn(" 3 ", [(1, 2, 2)] * 2)]
        try:
            rendered, filled = (
                self._render(_messages(system, turns, placeholder)) for placeholder in (self._image_token, None)
            )
        except NotPossibleHere:
            return False
        pieces = rendered.split(self._image_token)
        if len(pieces) != 5:
            return False
        first, _, after_reply, _, last = pieces
        in_order = system in first and " 1 " in pieces[1] and " 3 " in last and first.find(" 1 ") < 0
        with_reply = self._image_token.join((first, f"{pieces[1]} 2 {after_reply}", pieces[3], last))
        return in_order and filled == with_reply

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of all special tokens."""
        return frozenset(id for id, token in self.tokenizer.get_added_tokens_decoder().items() if token.special)

    def _refuse_special_tokens(self, text: str) -> None:
        for token in self.tokenizer.get_added_tokens_decoder().values():
            if token.special and token.content in text:
                raise InvalidInput(f"The prompt holds the reserved token {token.content}: leave it out.")


def _messages(system: str, turns: Iterable[PromptTurn], reply: str | None = None) -> list[dict[str, Any]]:
    """List a conversation's messages for the chat template; `reply` stands for every reply, None for its own text."""
    *earlier, present = turns
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for turn in earlier:
        answer = turn.reply if reply is None else reply
        messages += [_asked(turn.text, len(turn.grids)), {"role": "assistant", "content": answer}]
    return [*messages, _asked(present.text, len(present.grids))]


def _asked(text: str, images: int) -> dict[str, Any]:
    content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    return {"role": "user", "content": content if images else text}


def merged_patches(grid: Grid, merge_size: int) -> int:
    """Return how many tokens an image of this grid takes."""
    time, height, width = grid
    return time * (height // merge_size) * (width // merge_size)


def rope_positions(texts: Sequence[int], grids: Sequence[Grid], merge_size: int) -> tuple[NDArray[np.int64], int]:
    """Compute M-RoPE positions: text advances all three axes, an image spans a grid, text continues from its largest position.

    Args:
        texts: the number of text tokens before, between and after the images.
        grids: the images' patches, in order.
        merge_size: patches merged along each axis into one token.

    Returns:
        Positions int64 [3, n], and the next free one (Wang et al. 2024, Qwen2-VL, section 2.1).
    """
    runs, position = [_counted(0, texts[0])], texts[0]
    for grid, text in zip(grids, texts[1:], strict=True):
        image, span = _spanned(grid, merge_size)
        runs += [image + position, _counted(position + span, text)]
        position += span + text
    return np.concatenate(runs, axis=1), position


def _counted(first: int, length: int) -> NDArray[np.int64]:
    return np.arange(first, first + length)[None].repeat(3, axis=0)


@lru_cache(maxsize=16)  # a study's pictures are mostly of one size
def _spanned(grid: Grid, merge_size: int) -> tuple[NDArray[np.int64], int]:
    """Compute an image's positions, int64 [3, m] counted from 0, and how many positions it spans."""
    merged = (grid[0], grid[1] // merge_size, grid[2] // merge_size)
    return np.indices(merged, np.int64).reshape(3, -1), max(merged)
