"""The `openai` package, unchanged, as a client of the HTTP door: the same texts as by gRPC, and refusals that read well."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import openai
import pytest
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.serving.access.clients import ClientsFile
from tests.support.clients_file import clients_file
from tests.support.dicom_files import encode, png, saved, ultrasound
from tests.support.http_door import HTTP, data_uri, pictured
from tests.support.running_server import SERVER, Running, running

TOKENS = 20
SYSTEM = "You are a sonographer."


@dataclass(frozen=True)
class Both:
    """A server, and clients of both of its doors."""

    grpc: Running
    http: openai.OpenAI
    model: str

    def by_grpc(
        self, question: str, images: list[bytes] | None = None, said: pb.Conversation | None = None
    ) -> pb.Result:
        request = pb.AnswerQuestionRequest(
            question=question,
            images=[pb.Image(data=data) for data in images or []],
            options=pb.GenerationOptions(sampling=pb.Sampling(max_new_tokens=TOKENS)),
            conversation=said,
        )
        *_, last = self.grpc.stub.AnswerQuestion(request)
        result: pb.Result = last.result
        return result

    def by_http(self, *messages: dict[str, Any], **options: Any) -> Any:
        chosen = {"max_completion_tokens": TOKENS, **options}
        return self.http.chat.completions.create(model=self.model, messages=list(messages), **chosen)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def both(golden_bundle: Path) -> Iterator[Both]:
    with running(golden_bundle, replace(SERVER, http=HTTP)) as served:
        client = openai.OpenAI(base_url=f"http://{served.server.http_address}/v1", api_key="none", max_retries=0)
        with client:
            yield Both(served, client, client.models.list().data[0].id)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_the_model_is_listed_with_its_limits(both: Both) -> None:
    info = both.grpc.stub.GetModelInfo(pb.GetModelInfoRequest())
    model = both.http.models.retrieve(both.model)
    assert (model.id, model.object) == (info.model, "model")
    more = model.model_extra and model.model_extra["echovlm"]
    assert more and more["bundle_id"] == info.bundle_id
    assert more["limits"]["max_message_bytes"] == info.limits.max_message_bytes


def test_an_answer_about_pictures_is_grpc_s(both: Both) -> None:
    images = [png(112, 84), encode_jpeg(), saved(ultrasound(noise()))]
    kinds = ["image/png", "image/jpeg", "application/dicom"]
    expected = both.by_grpc("Write a report.", images)
    urls = [data_uri(data, kind) for data, kind in zip(images, kinds, strict=True)]
    done = both.by_http(user(pictured("Write a report.", *urls)))
    (choice,) = done.choices
    assert (choice.message.content, choice.finish_reason) == (expected.text, "length")
    counted = expected.usage
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (counted.prompt_tokens, counted.generated_tokens)
    assert choice.model_extra["echovlm"]["notice"] == expected.notice
    assert choice.model_extra["echovlm"]["notes"] == list(expected.notes)
    assert done.system_fingerprint == expected.bundle_id and done.model == expected.model


def test_a_stream_s_pieces_are_the_text_and_its_end_has_the_usage(both: Both) -> None:
    image = png(112, 84)
    expected = both.by_grpc("Write a report.", [image])
    asked = user(pictured("Write a report.", data_uri(image)))
    *chunks, last = both.by_http(asked, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert chunks[-1].choices[0].model_extra["echovlm"]["notice"] == expected.notice
    assert last.choices == [] and last.usage.completion_tokens == expected.usage.generated_tokens
    assert all(chunk.usage is None for chunk in chunks)


def test_a_conversation_is_grpc_s_and_its_replies_are_reused(both: Both) -> None:
    image = png(112, 84, seed=5)
    first = both.by_grpc("Write a report.", [image], pb.Conversation(system_prompt=SYSTEM))
    turn = pb.Turn(prompt="Write a report.", images=[pb.Image(data=image)], reply=first.text)
    second = both.by_grpc("Is it smooth?", [], pb.Conversation(system_prompt=SYSTEM, turns=[turn]))
    messages = [{"role": "system", "content": SYSTEM}, user(pictured("Write a report.", data_uri(image)))]
    reply = both.by_http(*messages).choices[0].message
    assert reply.content == first.text
    done = both.by_http(*messages, reply.model_dump(), user("Is it smooth?"))
    assert done.choices[0].message.content == second.text
    assert done.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens // 2


def test_a_stop_text_ends_the_text_before_it(both: Both) -> None:
    whole = both.by_http(user("Why?")).choices[0].message.content
    stop = whole[len(whole) // 2 :][:2]
    cut = whole[: whole.index(stop)]
    done = both.by_http(user("Why?"), stop=["never written", stop])
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == (cut, "stop")
    pieces = both.by_http(user("Why?"), stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == cut
    assert done.usage.completion_tokens < TOKENS


def test_choices_have_one_prefill_and_seeds_of_their_own(both: Both) -> None:
    asked = user(pictured("Describe it.", data_uri(png(112, 112, seed=9))))
    sampled = {"temperature": 1.0, "seed": 7}
    before = both.grpc.engine.stats().scheduler
    done = both.by_http(asked, n=3, **sampled)
    after = both.grpc.engine.stats().scheduler
    alone = [both.by_http(asked, **{**sampled, "seed": 7 + choice}).choices[0].message.content for choice in range(3)]
    assert [choice.message.content for choice in done.choices] == alone
    assert len(set(alone)) == 3
    assert after.reused_tokens - before.reused_tokens >= 2 * 4 * 4  # twice the picture's tokens
    assert done.usage.completion_tokens == 3 * TOKENS
    chunks = list(both.by_http(asked, n=3, stream=True, **sampled))
    for number, text in enumerate(alone):
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == number]
        assert "".join(choice.delta.content or "" for choice in own) == text


@pytest.mark.parametrize(
    ("options", "error", "param", "words"),
    [
        ({"top_logprobs": 3}, openai.BadRequestError, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, openai.BadRequestError, "top_logprobs", "less than or equal to 20"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            openai.BadRequestError,
            "tools",
            "not supported",
        ),
        ({"frequency_penalty": 0.5}, openai.BadRequestError, "frequency_penalty", "use repetition_penalty"),
        ({"temperature": 11}, openai.BadRequestError, None, "temperature must be between 0 and 10"),
        ({"stop": ["a", "b", "c", "d", "e"]}, openai.BadRequestError, "stop", "at most 4"),
        ({"model": "gpt"}, openai.NotFoundError, "model", "has not loaded"),
        ({"extra_body": {"surprise": 1}}, openai.BadRequestError, "surprise", "not supported"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    both: Both, options: dict[str, Any], error: type[openai.APIStatusError], param: str | None, words: str
) -> None:
    with pytest.raises(error, match=words) as refused:
        both.http.chat.completions.create(**{"model": both.model, "messages": [user("Why?")], **options})
    assert refused.value.param == param and refused.value.code and refused.value.type == "invalid_request_error"


def test_log_probabilities_are_grpc_s_whole_and_streamed(both: Both) -> None:
    options = pb.GenerationOptions(
        sampling=pb.Sampling(max_new_tokens=TOKENS, temperature=1, seed=4), log_probabilities=3
    )
    question = pb.AnswerQuestionRequest(question="Why?", options=options)
    *events, last = both.grpc.stub.AnswerQuestion(question)
    expected = [without_id(one) for one in last.result.tokens]
    assert len(expected) == last.result.usage.generated_tokens == TOKENS
    assert b"".join(one.bytes for one in expected).decode(errors="replace") == last.result.text
    assert [without_id(one) for event in events for one in event.tokens] == [one for one in expected if one.bytes]
    assert all(len(one.alternatives) == 3 and one.log_probability < 0 for one in expected)
    asked = {"temperature": 1, "seed": 4, "logprobs": True, "top_logprobs": 3}
    (choice,) = both.by_http(user("Why?"), **asked).choices
    assert choice.message.content == last.result.text and choice.logprobs.refusal is None
    assert [as_grpc(one) for one in choice.logprobs.content] == [one for one in expected if one.bytes]
    streamed, pieces = list[Any](), ""
    for chunk in both.by_http(user("Why?"), stream=True, **asked):
        (piece,) = chunk.choices
        pieces += piece.delta.content or ""
        streamed += piece.logprobs.content if piece.logprobs else []
    assert pieces == last.result.text and streamed == choice.logprobs.content
    (chosen_alone,) = both.by_http(user("Why?"), logprobs=True).choices
    assert all(one.top_logprobs == [] for one in chosen_alone.logprobs.content)
    assert both.by_http(user("Why?")).choices[0].logprobs is None


def without_id(one: pb.TokenProbability) -> pb.TokenProbability:
    """A token as OpenAI's API describes it, which names it by its text alone."""
    alternatives = [without_id(other) for other in one.alternatives]
    return pb.TokenProbability(
        text=one.text, bytes=one.bytes, log_probability=one.log_probability, alternatives=alternatives
    )


def as_grpc(one: Any) -> pb.TokenProbability:
    """A token of OpenAI's form."""
    fields = {"text": one.token, "bytes": bytes(one.bytes), "log_probability": one.logprob}
    return pb.TokenProbability(**fields, alternatives=[as_grpc(other) for other in getattr(one, "top_logprobs", [])])


def test_options_that_ask_for_nothing_are_taken(both: Both) -> None:
    nothing = {"logprobs": False, "frequency_penalty": 0, "response_format": {"type": "text"}, "tools": [], "n": 1}
    assert both.by_http(user("Why?"), **nothing).choices[0].message.content == both.by_grpc("Why?").text


class Side(Enum):
    LEFT, RIGHT = "left", "right"


class Finding(BaseModel):
    """What an integrator wants of a text."""

    model_config = ConfigDict(extra="forbid")

    present: bool
    side: Side
    size_mm: int = Field(ge=1, le=99)


def grpc_form(both: Both, form: pb.TextForm, **sampling: Any) -> pb.Result:
    options = pb.GenerationOptions(sampling=pb.Sampling(max_new_tokens=80, **sampling), text_form=form)
    *_, last = both.grpc.stub.AnswerQuestion(pb.AnswerQuestionRequest(question="Why?", options=options))
    result: pb.Result = last.result
    return result


def test_json_by_schema_is_parsed_whole_and_streamed_as_by_grpc(both: Both) -> None:
    asked = {"model": both.model, "messages": [user("Why?")], "max_completion_tokens": 80, "temperature": 1, "seed": 5}
    done = both.http.chat.completions.parse(**asked, response_format=Finding)  # type: ignore[arg-type]
    found = done.choices[0].message.parsed
    assert isinstance(found, Finding) and done.choices[0].finish_reason == "stop"
    schema = {"name": "finding", "schema": Finding.model_json_schema()}
    chunks = both.http.chat.completions.create(  # type: ignore[call-overload]
        **asked, response_format={"type": "json_schema", "json_schema": schema}, stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert Finding.model_validate_json(text)
    form = pb.TextForm(json_schema=json.dumps(Finding.model_json_schema()))
    assert grpc_form(both, form, temperature=1, seed=5).text == text
    with both.http.chat.completions.stream(**asked, response_format=Finding) as stream:  # type: ignore[arg-type]
        assert stream.get_final_completion().choices[0].message.parsed == found


def test_any_json_object(both: Both) -> None:
    done = both.by_http(user("Why?"), response_format={"type": "json_object"}, max_completion_tokens=400, temperature=1)
    for choice in done.choices:
        assert choice.message.content.startswith("{")
        assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)


@pytest.mark.parametrize(
    ("more", "form"),
    [
        (
            {"choice": ["left", "right", "data:both"]},
            pb.TextForm(choice=pb.Choices(texts=["left", "right", "data:both"])),
        ),
        ({"regex": "[0-9]{1,3} mm"}, pb.TextForm(regex="[0-9]{1,3} mm")),
        ({"json": {"const": "data:x"}}, pb.TextForm(json_schema='{"const": "data:x"}')),
        ({"json": '{"type": "boolean"}'}, pb.TextForm(json_schema='{"type": "boolean"}')),
    ],
)
def test_other_forms_are_grpc_s(both: Both, more: dict[str, Any], form: pb.TextForm) -> None:
    (choice,) = both.by_http(user("Why?"), extra_body={"structured_outputs": more}).choices
    expected = grpc_form(both, form)
    assert (choice.message.content, choice.finish_reason) == (expected.text, "stop")
    likely = choice.model_extra["echovlm"].get("choices", [])
    assert [one["text"] for one in likely] == more.get("choice", [])
    assert [one["probability"] for one in likely] == [one.probability for one in expected.choices]
    assert not likely or sum(one["probability"] for one in likely) == pytest.approx(1)


def test_a_task_s_own_answers(both: Both) -> None:
    asked = {
        "images": [pb.Image(data=png(112, 84))],
        "options": pb.GenerationOptions(text_form=pb.TextForm(answer=True)),
    }
    *_, last = both.grpc.stub.AnswerQuestion(
        pb.AnswerQuestionRequest(question="It is a cyst.", form=pb.ANSWER_FORM_TRUE_FALSE, **asked)
    )
    assert last.result.text in ("True", "False") and [one.text for one in last.result.choices] == ["True", "False"]
    *_, last = both.grpc.stub.AnswerQuestion(
        pb.AnswerQuestionRequest(question="A. Cyst. B. Nodule. C. Normal.", form=pb.ANSWER_FORM_LETTER, **asked)
    )
    assert last.result.text in "ABC" and [one.text for one in last.result.choices] == ["A", "B", "C"]
    with pytest.raises(grpc.RpcError, match="Only a judgement and a choice"):
        list(both.grpc.stub.AnswerQuestion(pb.AnswerQuestionRequest(question="Why?", **asked)))


def test_a_report_in_sections_has_both_or_is_cut(both: Both) -> None:
    for language, heading in ((pb.LANGUAGE_EN, "Ultrasound findings:"), (pb.LANGUAGE_ZH, "超声所见：")):
        options = pb.GenerationOptions(
            language=language,
            text_form=pb.TextForm(sections=True),
            sampling=pb.Sampling(max_new_tokens=300, temperature=1, seed=2),
        )
        images = [pb.Image(data=png(112, 84))]
        *_, last = both.grpc.stub.GenerateReport(pb.GenerateReportRequest(images=images, options=options))
        assert last.result.text.startswith(heading) and last.result.sections.findings
        assert last.result.sections.impression or last.result.finish_reason == pb.FINISH_REASON_LENGTH


SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}


@pytest.mark.parametrize(
    ("options", "code", "param", "words"),
    [
        ({"response_format": SCHEMA}, "unusable_form", None, "JSON schema cannot be used: .*not"),
        ({"response_format": {"type": "json_schema"}}, "invalid_value", "response_format.json_schema", "send both"),
        ({"response_format": {"type": "poem"}}, "invalid_value", "response_format.type", "json_object"),
        ({"response_format": {"type": "json_object"}, "stop": "}"}, "invalid_value", "stop", "leave out stop"),
        ({"extra_body": {"structured_outputs": {"regex": "["}}}, "unusable_form", None, "unclosed"),
        ({"extra_body": {"structured_outputs": {}}}, "invalid_value", "structured_outputs", "one of json"),
        ({"extra_body": {"structured_outputs": {"choice": []}}}, "unusable_form", None, "from 1 to 32"),
        ({"extra_body": {"structured_outputs": {"grammar": "x"}}}, "unsupported_parameter", None, "not supported"),
        ({"extra_body": {"guided_choice": ["a"]}}, "unsupported_parameter", "guided_choice", "use structured_outputs"),
    ],
)
def test_a_form_that_cannot_be_is_refused_in_a_sentence(
    both: Both, options: dict[str, Any], code: str, param: str | None, words: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=words) as refused:
            both.by_http(user("Why?"), stream=stream, **options)
        assert refused.value.code == code and (param is None or refused.value.param == param)


def test_a_picture_that_cannot_be_read_is_refused_before_the_stream_begins(both: Both) -> None:
    asked = user(pictured("Why?", data_uri(png(112, 84)[:200])))
    with pytest.raises(openai.BadRequestError, match="image 1"):
        both.by_http(asked, stream=True)


def test_unknown_clients_are_refused(golden_bundle: Path, tmp_path: Path) -> None:
    access = ClientsFile(clients_file(tmp_path, {"harness": {"token": "secret"}}))
    with running(golden_bundle, replace(SERVER, http=HTTP), access=access) as served:
        url = f"http://{served.server.http_address}/v1"
        with (
            openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as stranger,
            pytest.raises(openai.AuthenticationError, match="bearer token is unknown"),
        ):
            stranger.models.list()
        with openai.OpenAI(base_url=url, api_key="secret", max_retries=0) as known:
            assert known.models.list().data[0].id


def noise() -> Any:
    return np.random.default_rng(3).integers(0, 256, (84, 112, 3), dtype=np.uint8)


def encode_jpeg() -> bytes:
    return encode(Image.fromarray(noise()), "JPEG")
