"""What a request for a report asks for: its fields, checked, and the format of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from echovlm_edge.runtime.contracts.tasks import Language, Region
from echovlm_edge.runtime.serving.http.refusals import Refused

FILE = "file"  # the name of the parts that are files
Format = Literal["json", "sr", "fhir"]
MEDIA_TYPES: Mapping[Format, str] = {
    "json": "application/json",
    "sr": "application/dicom",
    "fhir": "application/fhir+json",
}


class ReportFields(BaseModel):
    """The fields beside the files. Absent ones have the defaults of report.proto."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    task: Literal["report", "findings", "impression"] = "report"
    prompt: str = Field("", repr=False)
    system_prompt: str = Field("", repr=False)
    language: Language = Language.EN
    region: Region | None = None
    format: Format | None = None
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
    try:
        return ReportFields.model_validate(texts)
    except ValidationError as wrong:
        first = wrong.errors(include_url=False, include_context=False, include_input=False)[0]
    name = str(first["loc"][0])[:200]
    if first["type"] == "extra_forbidden":
        raise Refused(
            f"There is no field {name}: send files as {FILE}, and beside them {', '.join(ReportFields.model_fields)}.",
            "unsupported_parameter",
            name,
        )
    raise Refused(f"The field {name} is wrong: {first['msg'][:1].lower()}{first['msg'][1:]}.", "invalid_value", name)


def format_of(accept: str, field: Format | None) -> Format:
    """Return the format of an answer, by the field or by the header Accept.

    Raises:
        Refused: there is no such format.
    """
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
