"""The body of `/v1/chat/completions`: which fields it may have, and what is refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, InstanceOf, ValidationError

from echovlm_edge.runtime.contracts.token_probability import MOST_ALTERNATIVES
from echovlm_edge.runtime.serving.http.chat.form import ResponseFormat, StructuredOutputs
from echovlm_edge.runtime.serving.http.chat.json_body import DataUri, Text
from echovlm_edge.runtime.serving.http.exchange.refusals import Refused

MOST_MESSAGES = 1024  # what a call may have of turns, Limits.max_turns, is far less
MOST_CHOICES, MOST_STOPS, LONGEST_STOP = 16, 4, 256
# Options of OpenAI's API that this server does not have, with the values that ask for nothing.
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_json": (),
    "guided_regex": (),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "user": (),
    "verbosity": (),
    "web_search_options": (),
}
# Fields of a reply that clients send back with it, where they say nothing.
EMPTY_IN_REPLY: Mapping[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
    "tool_calls": ([],),
}
INSTEAD = {
    "best_of": "use n, and choose among the choices",
    "frequency_penalty": "use repetition_penalty",
    "guided_choice": "use structured_outputs",
    "guided_json": "use structured_outputs",
    "guided_regex": "use structured_outputs",
    "presence_penalty": "use repetition_penalty",
    "user": "the token says who calls",
}


def _list(value: object) -> object:
    return [value] if isinstance(value, str | DataUri) else value


def _parts(value: object) -> object:
    value = value.text if isinstance(value, DataUri) else value
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Whole = Annotated[int, Field(ge=0, le=2**32 - 1)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class _ImageUrl(_Checked):
    url: InstanceOf[DataUri]
    detail: Literal["auto"] | None = None


class Part(_Checked):
    """A text or a picture."""

    type: Literal["text", "image_url"]
    text: Text | None = None
    image_url: _ImageUrl | None = None


class Message(_Checked):
    """One message; a content that is a text is one part."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[Part], FailFast(), BeforeValidator(_parts)]


class _StreamOptions(_Checked):
    include_usage: bool = False


class ChatBody(_Checked):
    """A checked body. What OpenAI's API does not have: top_k and everything from repetition_penalty on, as in report.proto."""

    model: Text
    messages: Annotated[list[Message], FailFast()]  # or a megabyte of wrong ones would make half a million errors
    stream: bool = False
    stream_options: _StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] = 0
    stop: Annotated[
        list[Annotated[Text, Field(min_length=1, max_length=LONGEST_STOP)]],
        Field(max_length=MOST_STOPS),
        BeforeValidator(_list),
    ] = []
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    max_completion_tokens: Whole | None = None
    max_tokens: Whole | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: Whole | None = None
    repetition_penalty: Number | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**64 - 1)] | None = None
    image_tokens: Whole = 0
    language: Literal["en", "zh"] = "en"
    priority: Literal["interactive", "batch"] = "interactive"
    allow_mixed_studies: bool = False


def _without_nothing(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out null and options that ask for nothing; refuse those that ask for what there is not."""
    left = {
        name: value for name, value in asked.items() if value is not None and not _is_nothing(UNSUPPORTED, name, value)
    }
    for name in left:
        if name in UNSUPPORTED:
            raise _unsupported(name, INSTEAD.get(name, "leave it out"))
    messages = left.get("messages")
    if isinstance(messages, list):
        if len(messages) > MOST_MESSAGES:
            raise Refused(f"There are more than {MOST_MESSAGES:,} messages: send fewer.", "invalid_value", "messages")
        left["messages"] = [_without_nothing_in_reply(message) for message in messages]
    return left


def _without_nothing_in_reply(message: object) -> object:
    if not isinstance(message, dict):
        return message
    return {
        name: value
        for name, value in message.items()
        if not (value is None and name in EMPTY_IN_REPLY) and not _is_nothing(EMPTY_IN_REPLY, name, value)
    }


def _is_nothing(options: Mapping[str, tuple[object, ...]], name: str, value: object) -> bool:
    """Whether an option has one of the values that ask for nothing; JSON's true is not its 1."""
    return any(
        value == nothing and isinstance(value, bool) == isinstance(nothing, bool) for nothing in options.get(name, ())
    )


def chat_body(asked: Mapping[str, Any]) -> ChatBody:
    """Check a body (see `read_json`).

    Raises:
        Refused: a field is wrong, or asks for what is not supported; the error names it.
    """
    return _validated(_without_nothing(asked))


def _validated(asked: dict[str, Any]) -> ChatBody:
    try:
        return ChatBody.model_validate(asked)
    except ValidationError as wrong:
        first = wrong.errors(include_url=False, include_context=False, include_input=False)[0]
    param = _path(first["loc"])
    if first["type"] == "extra_forbidden":
        raise _unsupported(param, "leave it out")
    if first["type"] == "missing":
        raise Refused(f"{param} is missing: send it.", "missing_required_parameter", param)
    if first["type"] == "is_instance_of" and param.endswith(".url"):
        raise Refused(
            f"{param} is not a data URI: this server fetches nothing, so send the picture's bytes as "
            "data:image/png;base64,… (or image/jpeg, application/dicom).",
            "unsupported_value",
            param,
        )
    raise Refused(f"{param} is wrong: {_lowered(first['msg'])}.", "invalid_value", param)


def _unsupported(param: str, instead: str) -> Refused:
    return Refused(f"{param[:200]} is not supported by this server: {instead}.", "unsupported_parameter", param[:200])


def _path(place: Sequence[int | str]) -> str:
    """Write a place as OpenAI's errors do: messages[0].content[1].type."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).lstrip(".")


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
