"""A request for a chat completion as the service's own request: messages to turns, options to sampling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.serving.http.chat.body import ChatBody, Message, chat_body
from echovlm_edge.runtime.serving.http.chat.form import text_form
from echovlm_edge.runtime.serving.http.exchange.option_words import LANGUAGES, PRIORITIES
from echovlm_edge.runtime.serving.http.exchange.refusals import Refused


@dataclass(frozen=True)
class ChatRequest:
    """What is asked.

    Attributes:
        model: that it is asked of.
        question: the request for the service's AnswerQuestion, its pictures included.
        choices: how many answers are wanted.
        tokens_field: the field that says how long the answer may be.
        stop: the text ends before the first of these.
        stream: whether the answer is streamed.
        with_usage: whether the stream ends with the tokens' numbers.
    """

    model: str = field(repr=False)
    question: pb.AnswerQuestionRequest = field(repr=False)
    choices: int
    tokens_field: str = field(repr=False)
    stop: tuple[str, ...] = field(repr=False)
    stream: bool
    with_usage: bool


def chat_request(asked: Mapping[str, Any]) -> ChatRequest:
    """Check a body (see `read_json`) and convert it.

    Raises:
        Refused: a field is wrong, or asks for what is not supported; the error names it.
    """
    body = chat_body(asked)
    most = _most_tokens(body)
    request = pb.AnswerQuestionRequest(image_tokens=body.image_tokens)
    options = request.options
    options.language, options.priority = LANGUAGES[body.language], PRIORITIES[body.priority]
    options.allow_mixed_studies = body.allow_mixed_studies
    if body.top_logprobs and not body.logprobs:
        raise Refused("top_logprobs needs logprobs: send logprobs as true too.", param="top_logprobs")
    if body.logprobs:
        options.log_probabilities = body.top_logprobs
    if form := text_form(body.response_format, body.structured_outputs):
        if body.stop:
            raise Refused("stop would cut an answer in a form: leave out stop or the form.", param="stop")
        options.text_form.CopyFrom(form)
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
    tokens_field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    return ChatRequest(body.model, request, body.n, tokens_field, tuple(body.stop), body.stream, with_usage)


def _most_tokens(body: ChatBody) -> int | None:
    given = {most for most in (body.max_completion_tokens, body.max_tokens) if most is not None}
    if len(given) > 1:
        raise Refused(
            "max_completion_tokens and max_tokens differ: send max_completion_tokens alone.",
            param="max_completion_tokens",
        )
    return next(iter(given), None)


def _converse(messages: Sequence[Message], request: pb.AnswerQuestionRequest) -> None:
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


def _turn(message: Message, param: str) -> tuple[str, list[pb.Image]]:
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


def _only_text(message: Message, param: str) -> str:
    texts = list(_texts(message, param))
    text = "\n".join(texts)
    if not text.strip():
        raise Refused(f"{param}.content is empty: write it, or leave the message out.", param=f"{param}.content")
    return text


def _texts(message: Message, param: str) -> Iterator[str]:
    for number, part in enumerate(message.content):
        if part.type != "text":
            raise Refused(
                f"{param}.content[{number}] is a picture in a message of role {message.role}: pictures belong to the user's.",
                param=f"{param}.content[{number}].type",
            )
        yield _own(part.text, part.image_url, f"{param}.content[{number}].text")
