"""What an answer must look like, as chat completions ask for it: OpenAI's `response_format`, and `structured_outputs` as vLLM has it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.serving.http.chat.json_body import DataUri, Text
from echovlm_edge.runtime.serving.http.exchange.refusals import Refused


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True, protected_namespaces=())


class _JsonSchema(_Checked):
    name: Text
    schema_: dict[str, Any] = Field(alias="schema")
    description: Text | None = None
    strict: bool | None = None  # a schema is always kept to


class ResponseFormat(_Checked):
    """OpenAI's."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None


class StructuredOutputs(_Checked):
    """One of these; `sections` is this server's own."""

    json_: dict[str, Any] | Text | None = Field(None, alias="json")
    regex: Text | None = None
    choice: Annotated[list[Text], Field(max_length=1024)] | None = None
    sections: bool | None = None


def text_form(asked: ResponseFormat | None, more: StructuredOutputs | None) -> pb.TextForm | None:
    """Convert what is asked for; None for any text.

    Raises:
        Refused: both are there, or one asks for nothing or for several things.
    """
    form = None
    if asked and asked.type != "text":
        if (asked.type == "json_schema") != (asked.json_schema is not None):
            raise Refused(
                "response_format.json_schema belongs to type json_schema: send both.",
                param="response_format.json_schema",
            )
        schema: object = asked.json_schema.schema_ if asked.json_schema else {"type": "object"}
        form = pb.TextForm(json_schema=_written(schema))
    if more is None:
        return form
    given = more.model_dump(exclude_none=True)
    if form or len(given) != 1:
        raise Refused(
            "structured_outputs is one of json, regex, choice and sections, without a response_format: send one.",
            param="structured_outputs",
        )
    if more.choice is not None:
        return pb.TextForm(choice=pb.Choices(texts=more.choice))
    if more.regex is not None:
        return pb.TextForm(regex=more.regex)
    if more.sections is not None:
        return pb.TextForm(sections=more.sections)
    return pb.TextForm(json_schema=more.json_ if isinstance(more.json_, str) else _written(more.json_))


def _written(schema: object) -> str:
    return json.dumps(schema, ensure_ascii=False, default=_text)


def _text(value: object) -> str:
    assert isinstance(value, DataUri)  # a text that begins with data:
    return value.text
