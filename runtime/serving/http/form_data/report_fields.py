"""What a request for a report asks for: its fields, checked, and the format of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, Json, ValidationError

from echovlm_edge.runtime.contracts.tasks import Language, Region
from echovlm_edge.runtime.serving.http.exchange.refusals import Refused

FILE = "file"  # the name of the parts that are files
MOST_TURNS = 1024  # what a call may have of them, CallLimits.turns, is far less
Document = Literal["sr", "fhir"]
Format = Literal["json", "sr", "fhir"]
MEDIA_TYPES: Mapping[Format, str] = {
    "json": "application/json",
    "sr": "application/dicom",
    "fhir": "application/fhir+json",
}


Fields = TypeVar("Fields", bound=BaseModel)


class ReportTurn(BaseModel):
    """An earlier turn of a conversation about the files: what the model was asked, and its reply."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    prompt: str = Field(repr=False)
    reply: str = Field(repr=False)


def _words(value: object) -> object:
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else value


class ReportFields(BaseModel):
    """The fields beside the files. Absent ones have the defaults of report.proto."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    task: Literal["report", "findings", "impression", "question", "judge", "choice"] = "report"
    turns: Json[Annotated[list[ReportTurn], FailFast(), Field(max_length=MOST_TURNS)]] = Field([], repr=False)
    prompt: str = Field("", repr=False)
    system_prompt: str = Field("", repr=False)
    language: Language = Language.EN
    region: Region | None = None
    format: Format | None = None
    documents: Annotated[list[Document], FailFast(), BeforeValidator(_words)] = []
    stream: bool = False
    frames: int = Field(0, ge=0, le=2**32 - 1)
    keep_whole_frame: bool = False
    image_tokens: int = Field(0, ge=0, le=2**32 - 1)
    max_completion_tokens: int | None = Field(None, ge=0, le=2**32 - 1)
    temperature: float | None = Field(None, allow_inf_nan=False)
    top_p: float | None = Field(None, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=0, le=2**32 - 1)
    repetition_penalty: float | None = Field(None, allow_inf_nan=False)
    seed: int | None = Field(None, ge=0, le=2**64 - 1)
    priority: Literal["interactive", "batch"] = "interactive"
    allow_mixed_studies: bool = False
    logprobs: bool = False
    sections: bool = False


def report_fields(texts: Mapping[str, str]) -> ReportFields:
    """Check the fields.

    Raises:
        Refused: one is wrong or unknown; the error names it.
    """
    return checked_fields(ReportFields, texts)


def checked_fields(kind: type[Fields], texts: Mapping[str, str]) -> Fields:
    """Check the fields of a form by their model.

    Raises:
        Refused: one is wrong or unknown; the error names it.
    """
    try:
        return kind.model_validate(texts)
    except ValidationError as wrong:
        first = wrong.errors(include_url=False, include_context=False, include_input=False)[0]
    name = str(first["loc"][0])[:200]
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        raise Refused(
            f"There is no field {name}: send files as {FILE}, and beside them {', '.join(kind.model_fields)}.",
            "unsupported_parameter",
            name,
        )
    raise Refused(f"The field {name} is wrong: {first['msg'][:1].lower()}{first['msg'][1:]}.", "invalid_value", name)


def format_of(accept: str, field: Format | None, stream: bool = False) -> Format:
    """Return the format of an answer, by the field or by the header Accept; a stream is of JSON.

    Raises:
        Refused: there is no such format.
    """
    if stream:
        if field not in (None, "json"):
            raise Refused("A stream is of JSON: leave out format, and ask for documents instead.", param="format")
        return "json"
    if field:
        return field
    wanted = [kind.partition(";")[0].strip().lower() for kind in (accept or "*/*").split(",")]
    for kind in wanted:
        for name, media_type in MEDIA_TYPES.items():
            if kind == media_type:
                return name
    if {"*/*", "application/*"} & set(wanted):
        return "json"
    raise Refused(
        f"This server answers with {', '.join(MEDIA_TYPES.values())}: name one of them in Accept.",
        "not_acceptable",
        status=406,
    )
