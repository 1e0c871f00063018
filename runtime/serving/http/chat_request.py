"""A body of `/v1/chat/completions`, checked, and as the service's own request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf, ValidationError

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.serving.http.json_body import DataUri
from echovlm_edge.runtime.serving.http.refusals import Refused

MOST_CHOICES, MOST_STOPS, LONGEST_STOP = 16, 4, 256
# Options of OpenAI's API that this server does not have, with the values that ask for nothing.
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
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
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
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
    "frequency_penalty": "use repetition_penalty",
    "presence_penalty": "use repetition_penalty",
    "user": "the token says who calls",
}
LANGUAGES = {"en": pb.LANGUAGE_EN, "zh": pb.LANGUAGE_ZH}
PRIORITIES = {"interactive": pb.PRIORITY_INTERACTIVE, "batch": pb.PRIORITY_BATCH}


def _text(value: object) -> object:
    return value.text if isinstance(value, DataUri) else value


def _list(value: object) -> object:
    return [value] if isinstance(value, str | DataUri) else value


def _parts(value: object) -> object:
    value = _text(value)
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_text)]
Whole = Annotated[int, Field(ge=0, le=2**32 - 1)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class _ImageUrl(_Checked):
    url: InstanceOf[DataUri]
    detail: Literal["auto"] | None = None


class _Part(_Checked):
    type: Literal["text", "image_url"]
    text: Text | None = None
    image_url: _ImageUrl | None = None


class _Message(_Checked):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[_Part], BeforeValidator(_parts)]


class _StreamOptions(_Checked):
    include_usage: bool = False


class _Body(_Checked):
    model: Text
    messages: list[_Message]
    stream: bool = False
    stream_options: _StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    stop: Annotated[
        list[Annotated[Text, Field(min_length=1, max_length=LONGEST_STOP)]],
        Field(max_length=MOST_STOPS),
        BeforeValidator(_list),
    ] = []
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


@dataclass(frozen=True)
class ChatRequest:
    """What is asked.

    Attributes:
        model: that it is asked of.
        question: the request for the service's AnswerQuestion, its pictures included.
        choices: how many answers are wanted.
        stop: the text ends before the first of these.
        stream: whether the answer is streamed.
        with_usage: whether the stream ends with the tokens' numbers.
    """

    model: str = field(repr=False)
    question: pb.AnswerQuestionRequest = field(repr=False)
    choices: int
    stop: tuple[str, ...] = field(repr=False)
    stream: bool
    with_usage: bool

    def numbered(self, choice: int) -> pb.AnswerQuestionRequest:
        """Return the request of one choice, from 0: with its own seed, so that sampled choices differ."""
        if not choice:
            return self.question
        other = pb.AnswerQuestionRequest()
        other.CopyFrom(self.question)
        other.options.sampling.seed = (self.question.options.sampling.seed + choice) % 2**64
        return other


def chat_request(asked: Mapping[str, Any]) -> ChatRequest:
    """Check a body (see `read_json`) and convert it.

    Raises:
        Refused: a field is wrong, or asks for what is not supported; the error names it.
    """
    body = _checked(_without_nothing(asked))
    most = _most_tokens(body)
    request = pb.AnswerQuestionRequest(image_tokens=body.image_tokens)
    options = request.options
    options.language, options.priority = LANGUAGES[body.language], PRIORITIES[body.priority]
    options.allow_mixed_studies = body.allow_mixed_studies
    sampling = {
        "max_new_tokens": most,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "repetition_penalty": body.repetition_penalty,
        "seed": None if body.seed is None else body.seed % 2**64,
    }
    for name, value in sampling.items():
        if value is not None:
            setattr(options.sampling, name, value)
    _converse(body.messages, request)
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    return ChatRequest(body.model, request, body.n, tuple(body.stop), body.stream, with_usage)


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


def _checked(asked: dict[str, Any]) -> _Body:
    try:
        return _Body.model_validate(asked)
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


def _most_tokens(body: _Body) -> int | None:
    given = {most for most in (body.max_completion_tokens, body.max_tokens) if most is not None}
    if len(given) > 1:
        raise Refused(
            "max_completion_tokens and max_tokens differ: send max_completion_tokens alone.",
            param="max_completion_tokens",
        )
    return next(iter(given), None)


def _converse(messages: Sequence[_Message], request: pb.AnswerQuestionRequest) -> None:
    """Write a system prompt, earlier turns and the question into a request: user and assistant speak in turn, the user last."""
    rest = list(enumerate(messages))
    if rest and rest[0][1].role in ("system", "developer"):
        number, message = rest.pop(0)
        request.conversation.system_prompt = _only_text(message, f"messages[{number}]")
    for place, (number, message) in enumerate(rest):
        wanted = "assistant" if place % 2 else "user"
        if message.role != wanted:
            raise Refused(
                f"messages[{number}].role is {message.role} where {wanted} is expected: send one system message at most, "
                "first, and then user and assistant in turn.",
                param=f"messages[{number}].role",
            )
    if len(rest) % 2 == 0:
        raise Refused("The last message is not the user's: end with what is asked.", param="messages")
    *earlier, (last, question) = rest
    for (number, asked), (next_number, reply) in zip(earlier[::2], earlier[1::2], strict=True):
        text, images = _turn(asked, f"messages[{number}]")
        said = _only_text(reply, f"messages[{next_number}]")
        request.conversation.turns.add(prompt=text, images=images, reply=said)
    request.question, images = _turn(question, f"messages[{last}]")
    request.images.extend(images)


def _turn(message: _Message, param: str) -> tuple[str, list[pb.Image]]:
    """Return a user's text, and the images, which the model is shown before it."""
    texts, images = [], []
    for number, part in enumerate(message.content):
        where = f"{param}.content[{number}]"
        if part.type == "text":
            texts.append(_own(part.text, part.image_url, f"{where}.text"))
        else:
            image = _own(part.image_url, part.text, f"{where}.image_url")
            media_type, data = image.url.file(f"{where}.image_url.url")
            images.append(pb.Image(data=data, media_type=media_type))
    text = "\n".join(texts)
    if not text.strip():
        raise Refused(f"{param}.content has no text: write what is asked.", param=f"{param}.content")
    return text, images


def _own(wanted: Any, other: object, param: str) -> Any:
    """Return the one value that a part of its type has."""
    if wanted is None or other is not None:
        raise Refused(f"{param} must be there, and nothing else beside type.", param=param)
    return wanted


def _only_text(message: _Message, param: str) -> str:
    texts = list(_texts(message, param))
    text = "\n".join(texts)
    if not text.strip():
        raise Refused(f"{param}.content is empty: write it, or leave the message out.", param=f"{param}.content")
    return text


def _texts(message: _Message, param: str) -> Iterator[str]:
    for number, part in enumerate(message.content):
        if part.type != "text":
            raise Refused(
                f"{param}.content[{number}] is a picture in a message of role {message.role}: pictures belong to the user's.",
                param=f"{param}.content[{number}].type",
            )
        yield _own(part.text, part.image_url, f"{param}.content[{number}].text")
