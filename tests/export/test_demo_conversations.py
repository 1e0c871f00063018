"""The demo is trained on the tokens that the product serves: conversations laid out for training, beside the product's own prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from demo.checkpoint_files import CHAT_TEMPLATE, config_json, token_id
from demo.exchanges import Exchange
from demo.training.conversations import MOST_FRAMES, Layout, draw_conversations
from demo.training.frames import TRAINING_SEEDS, truth_of
from demo.training.images import GRID
from echovlm_edge.export.source.config import EchoVLMConfig
from echovlm_edge.runtime.prompting.prompt import Prompt, PromptBuilder, PromptTurn

TOKENIZER = Tokenizer.from_file("demo/checkpoint/tokenizer.json")
LAYOUT = Layout(TOKENIZER, EchoVLMConfig.from_json(config_json(), "the demo's config"))
BUILDER = PromptBuilder(TOKENIZER, CHAT_TEMPLATE, token_id("<|image_pad|>"), 2)


def tokens(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text, add_special_tokens=False).ids
    return ids


def served(conversation: Sequence[Exchange], frames: int) -> Prompt:
    turns = [PromptTurn(turn.prompt, (), turn.answer) for turn in conversation]
    turns[0] = PromptTurn(turns[0].text, [GRID] * frames, turns[0].reply)
    return BUILDER.build_conversation("", turns, lambda before, text: tokens(text))


def drawn(seed: int, frames: int) -> list[tuple[Exchange, ...]]:
    return draw_conversations(truth_of(TRAINING_SEEDS + seed), frames, 8, np.random.default_rng(seed))


@given(st.integers(0, 10_000), st.integers(1, MOST_FRAMES))
def test_rows_are_the_tokens_and_positions_that_are_served(seed: int, frames: int) -> None:
    beginning = LAYOUT.beginning(frames)
    for conversation in drawn(seed, frames):
        prompt = served(conversation, frames)
        row = LAYOUT.branches(beginning, [0], [conversation])
        whole = [*prompt.token_ids, *tokens(conversation[-1].answer), token_id("<|im_end|>")]
        assert [*beginning.ids.tolist(), *row.ids[0].tolist()] == whole
        assert beginning.next_position == prompt.positions[0, len(beginning.ids)]


@given(st.integers(0, 10_000))
def test_a_claim_ends_at_its_token(seed: int) -> None:
    conversations = drawn(seed, 1)
    rows = LAYOUT.branches(LAYOUT.beginning(1), range(len(conversations)), conversations)
    claims = [claim for conversation in conversations for turn in conversation for claim in turn.claims]
    assert rows.are_true.tolist() == [claim.is_true for claim in claims]
    for claim, (row, column) in zip(claims, rows.claims.tolist(), strict=True):
        until = TOKENIZER.decode(rows.ids[row, : column + 1].tolist()).lower()
        assert (
            claim.text in until
            and claim.text not in TOKENIZER.decode(rows.ids[row, :column].tolist()).lower()[-len(claim.text) :]
        )


def test_every_exchange_is_drawn_once_in_conversations_of_several_lengths() -> None:
    lengths = [len(conversation) for seed in range(50) for conversation in drawn(seed, 2)]
    assert sum(lengths) == 50 * 8 and set(lengths) == {1, 2, 3}


@pytest.mark.parametrize("frames", [1, MOST_FRAMES])
def test_only_words_that_have_a_successor_are_weighed(frames: int) -> None:
    conversations = drawn(7, frames)
    rows = LAYOUT.branches(LAYOUT.beginning(frames), range(len(conversations)), conversations)
    assert not rows.weights[~rows.is_text].any()
    assert [(row > 0).sum() for row in rows.weights] == [text.sum() - 1 for text in rows.is_text]
