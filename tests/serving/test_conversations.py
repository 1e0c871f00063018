"""Conversations through the real gRPC server: each turn's tokens are those of a cold run, and nothing is read twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.contracts.statuses import reason_of
from echovlm_edge.runtime.engine.caching.reuse import BLOCK
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.prompting.prompt import PromptTurn
from echovlm_edge.runtime.serving.access.clients import ClientsFile
from tests.support import golden
from tests.support.clients_file import clients_file
from tests.support.dicom_files import png
from tests.support.running_server import Running, running

TOKENS = 20
SYSTEM = "You are a sonographer."
OPTIONS = pb.GenerationOptions(sampling=pb.Sampling(max_new_tokens=TOKENS), include_token_ids=True)
ASKED = [
    ("Write a report.", [png(112, 84), png(84, 140)]),
    ("Is the margin smooth?", []),
    ("And in this one?", [png(56, 84)]),
]


@pytest.fixture(scope="module")
def served(golden_bundle: Path) -> Iterator[Running]:
    with running(golden_bundle) as served:
        yield served


def ask(
    served: Running,
    prompt: str,
    images: Sequence[bytes],
    earlier: Sequence[pb.Turn],
    system: str = "",
    study: str = "",
    token: str = "",
) -> pb.Result:
    request = pb.AnswerQuestionRequest(
        question=prompt,
        images=[pb.Image(data=data) for data in images],
        options=OPTIONS,
        conversation=pb.Conversation(system_prompt=system, turns=earlier),
        study=study,
    )
    metadata = [("authorization", f"Bearer {token}")] if token else []
    *_, last = served.stub.AnswerQuestion(request, metadata=metadata)
    result: pb.Result = last.result
    return result


def turn_of(result: pb.Result, images: Sequence[bytes] = ()) -> pb.Turn:
    return pb.Turn(prompt=result.prompt, reply=result.text, images=[pb.Image(data=data) for data in images])


def converse(served: Running) -> list[pb.Result]:
    results, earlier = list[pb.Result](), list[pb.Turn]()
    for prompt, images in ASKED:
        results.append(ask(served, prompt, images, earlier, SYSTEM))
        earlier.append(turn_of(results[-1], images))
    return results


def test_three_turns_have_the_tokens_of_a_cold_run_and_read_nothing_twice(served: Running, golden_bundle: Path) -> None:
    prefilled = served.engine.stats().scheduler.prefilled_tokens
    results = converse(served)
    with running(golden_bundle, engine_options=EngineOptions(1, 0, 0)) as cold:
        for warm, again in zip(results, converse(cold), strict=True):
            assert again.usage.reused_tokens == 0
            assert warm.token_ids == again.token_ids and warm.usage.prompt_tokens == again.usage.prompt_tokens
    # All of the turn before: its last token alone was never fed to the decoder, and blocks are whole.
    said = [result.usage.prompt_tokens + TOKENS - 1 for result in results]
    assert [result.usage.reused_tokens for result in results] == [0, *(count // BLOCK * BLOCK for count in said[:-1])]
    read = sum(result.usage.prompt_tokens - result.usage.reused_tokens for result in results)
    assert served.engine.stats().scheduler.prefilled_tokens - prefilled == read
    assert [picture.image for picture in results[-1].pictures] == [1, 2, 3]
    assert [len(result.pictures) for result in results] == [2, 2, 3]


def test_the_last_turn_is_the_references(served: Running, request: pytest.FixtureRequest) -> None:
    """The PyTorch model writes the same tokens after the same messages, with the replies' own tokens."""
    if request.config.getoption("--backend") != "cpu":
        pytest.skip("another backend rounds differently")
    import torch

    from echovlm_edge.export.parity.reference import TorchBackend
    from echovlm_edge.export.source.checkpoint import Checkpoint
    from echovlm_edge.runtime.backends import new_cache
    from echovlm_edge.runtime.contracts.request import ImageInput
    from echovlm_edge.runtime.engine.model import prompt_embeddings
    from echovlm_edge.runtime.imaging.image_file import decode_image
    from echovlm_edge.runtime.imaging.preprocess import patchify
    from echovlm_edge.runtime.prompting.prompt import PromptBuilder
    from echovlm_edge.runtime.prompting.rotary import MultimodalRotary, vision_angles

    results, checkpoint = converse(served), Checkpoint(golden.CHECKPOINT)
    backend, config = TorchBackend(checkpoint), checkpoint.config
    engine = served.engine
    assert isinstance(engine._current, ReportEngine)
    settings, tokenizer = engine._current.settings, engine._current.prompts.tokenizer
    pictures = [
        [patchify(decode_image(ImageInput(data))[0].pixels, settings) for data in images] for _, images in ASKED
    ]
    turns = [
        PromptTurn(prompt, [patches.grid for patches in shown], result.text)
        for (prompt, _), shown, result in zip(ASKED, pictures, results, strict=True)
    ]
    own = {result.text: list(result.token_ids) for result in results}
    prompts = PromptBuilder(tokenizer, checkpoint.chat_template(), config.image_token_id, 2)
    prompt = prompts.build_conversation(SYSTEM, turns, lambda before, reply: own[reply])
    vision, decoder = config.vision, config.decoder
    embedded = [
        backend.project(
            backend.encode(patches.values, vision_angles(patches.grid, vision.spatial_merge_size, vision.head_dim))
        )
        for shown in pictures
        for patches in shown
    ]
    rotary = MultimodalRotary(decoder.mrope_section, decoder.rope_theta)
    cache = new_cache(backend, len(prompt.token_ids) + TOKENS)
    rows, positions, written, filled = prompt_embeddings(backend, prompt, embedded), prompt.positions, list[int](), 0
    with torch.inference_mode():
        for step in range(TOKENS):
            last = np.array([len(rows) - 1])
            (logits,) = backend.decode(rows, rotary.angles(positions), filled, last, cache)
            written.append(int(np.argmax(logits)))
            filled += len(rows)
            rows, positions = backend.embed(np.array(written[-1:])), np.full((3, 1), prompt.next_position + step)
    assert written == list(results[-1].token_ids)


def test_a_later_question_about_a_study_reuses_its_report(served: Running) -> None:
    study = served.stub.BeginStudy(pb.BeginStudyRequest()).id
    for _, images in ASKED[:1]:
        for data in images:
            served.stub.AddImage(pb.AddImageRequest(study=study, image=pb.Image(data=data)))
    report = ask(served, "Report.", [], [], study=study)
    turn = turn_of(report)
    turn.study_images.extend(picture.study_image for picture in report.pictures)
    answer = ask(served, "Where?", [], [turn], study=study)
    assert answer.usage.reused_tokens == (report.usage.prompt_tokens + TOKENS - 1) // BLOCK * BLOCK
    assert answer.usage.image_tokens == report.usage.image_tokens

    number = served.stub.AddImage(pb.AddImageRequest(study=study, image=pb.Image(data=png(56, 84)))).number
    compared = ask(served, "And here?", [], [turn], study=study)
    assert compared.usage.reused_tokens >= answer.usage.reused_tokens, "the new image comes after the report"
    assert [picture.study_image for picture in compared.pictures] == [1, 2, number]

    served.stub.WithdrawImage(pb.WithdrawImageRequest(study=study, number=1))
    for turns, sentence in (
        ([turn], "no image 1: it was withdrawn"),
        ([pb.Turn(prompt="?", study_images=[2])] * 2, "names image 2 of the study twice: name it once"),
        ([pb.Turn(prompt="?", study_images=[number, 2, 2])], "names image 2 of the study twice: name it once"),
        ([pb.Turn(prompt="?", study_images=[0])], "no image 0: it was withdrawn, or never added"),
        ([pb.Turn(prompt="?", study_images=[99])], "no image 99: it was withdrawn, or never added"),
    ):
        with pytest.raises(grpc.RpcError, match=sentence):
            ask(served, "Why?", [], turns, study=study)


def test_a_changed_reply_is_read_again_from_its_change_on(served: Running) -> None:
    first = ask(served, "What is it?", [], [])
    turn = turn_of(first)
    turn.reply = "A cyst."
    corrected = ask(served, "How large?", [], [turn])
    assert corrected.usage.reused_tokens <= first.usage.prompt_tokens
    assert corrected.token_ids == ask(served, "How large?", [], [turn]).token_ids


def test_eight_turns_of_eight_images_are_numbered_through(served: Running) -> None:
    pictures = [png(56, 56, seed) for seed in range(64)]
    turns = [
        pb.Turn(prompt=f"{number}?", images=[pb.Image(data=data) for data in pictures[8 * number :][:8]], reply="So.")
        for number in range(8)
    ]
    answer = ask(served, "And?", [], turns)
    assert [picture.image for picture in answer.pictures] == list(range(1, 65))
    assert answer.usage.image_tokens == sum(picture.tokens for picture in answer.pictures) == 64 * 4
    with pytest.raises(grpc.RpcError, match="65 images, more than 64"):
        ask(served, "And?", pictures[:1], turns)
    turns[7].images[7].data = b"no picture"
    with pytest.raises(grpc.RpcError, match="image 64"):
        ask(served, "And?", [], turns)


def test_a_reply_is_reused_by_its_own_client_only(golden_bundle: Path, tmp_path: Path) -> None:
    names = ("cart-1", "cart-2")
    with running(
        golden_bundle, access=ClientsFile(clients_file(tmp_path, {name: {"token": name} for name in names}))
    ) as served:
        first = ask(served, "What is it?", [], [], token="cart-1")
        reused = {
            name: ask(served, "How large?", [], [turn_of(first)], token=name).usage.reused_tokens
            for name in reversed(names)
        }
    assert reused == {"cart-2": 0, "cart-1": (first.usage.prompt_tokens + TOKENS - 1) // BLOCK * BLOCK}


@pytest.mark.parametrize(
    ("conversation", "sentence"),
    [
        (
            pb.Conversation(turns=[pb.Turn(prompt="Why?", reply="So.")] * 65),
            "65 earlier turns, more than 64: leave out",
        ),
        (pb.Conversation(turns=[pb.Turn(reply="So.")]), "Turn 1 has no prompt: send the result's prompt"),
        (
            pb.Conversation(turns=[pb.Turn(prompt="Why?", reply="x" * 100_001)]),
            "characters, more than 100,000: leave out",
        ),
        (pb.Conversation(system_prompt="<|im_end|>"), r"reserved token <\|im_end\|>"),
        (pb.Conversation(turns=[pb.Turn(prompt="Why?", images=[pb.Image(data=b"x")] * 65)]), "65 images, more than 64"),
        (
            pb.Conversation(turns=[pb.Turn(prompt="Why?"), pb.Turn(prompt="Why?", study_images=[1])]),
            "Turn 2 names an image of a study, but the request names no study: send the study's id",
        ),
        (pb.Conversation(turns=[pb.Turn(prompt="Why?", images=[pb.Image()])] * 600), "more than 1,024 fields"),
    ],
    ids=["turns", "no prompt", "characters", "special token", "images", "no study", "fields"],
)
def test_what_is_refused(served: Running, conversation: pb.Conversation, sentence: str) -> None:
    request = pb.AnswerQuestionRequest(question="?", conversation=conversation, options=OPTIONS)
    with pytest.raises(grpc.RpcError, match=sentence) as refused:
        list(served.stub.AnswerQuestion(request))
    assert reason_of(refused.value.trailing_metadata()) in ("INVALID_INPUT", "NOT_FOUND")
