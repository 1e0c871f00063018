"""The options that report, diagnose, ask and stream share, and the request built from them."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict, TypeVar

from echovlm_edge.runtime.client.given_images import GivenImages, images_to_send
from echovlm_edge.runtime.client.report import Asked
from echovlm_edge.runtime.client.said import Said
from echovlm_edge.runtime.client.sending import Progress
from echovlm_edge.runtime.client.wire.requests import ReportRequest
from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.image_path import SentImage
from echovlm_edge.runtime.contracts.request import FrameSelection, Priority, Sampling
from echovlm_edge.runtime.contracts.tasks import Language, Region, Task
from echovlm_edge.runtime.contracts.text_form import TextForm

Choice = TypeVar("Choice", bound=enum.Enum)


class ImageOptions(TypedDict, total=False):
    """How image files are read.

    Attributes:
        frames: of each cine, counted from 0; None for its middle one. `"cine.dcm@0,5"` chooses frames of one file.
        frames_spaced: how many frames of each cine to take, evenly spaced.
        crop_to_regions: keep only the B-mode regions that a DICOM file declares; True by default.
        allow_mixed_studies: take images of several studies of one patient; of two patients they are always refused.
        timeout: seconds for the whole call, including uploads and retries; None for no limit.
        progress: called from another thread with the bytes of large files that have been sent, and with their total.
    """

    frames: Sequence[int] | None
    frames_spaced: int
    crop_to_regions: bool
    allow_mixed_studies: bool
    timeout: float | None
    progress: Progress | None


class CallOptions(ImageOptions, total=False):
    """ImageOptions, and the options of the question about them.

    Attributes:
        language: `en` or `zh`, of the default prompt and so of the text.
        region: where the images were taken: breast, thyroid, liver, kidney, gynecology, heart or vessel.
        sampling: how tokens are chosen, and how many; the default is greedy and at most 512.
        priority: interactive calls go before batch calls.
        include_token_ids: put the generated tokens into the report.
        image_tokens: most visual tokens of a frame, for fewer than the server's bound; a study has its own, see `study`.
        log_probabilities: put the tokens and their log probabilities into the report, and into the pieces of a stream, with so many of the
            likeliest tokens of each place, from 0 to 20.
        form: what the text must look like: a `ChoiceForm`, `SchemaForm`, `PatternForm` or `SectionsForm`; "answer" for True or False in
            the task judge, and for the letter of an option in the task choice.
    """

    language: Language | str
    region: Region | str | None
    sampling: Sampling
    priority: Priority
    include_token_ids: bool
    image_tokens: int | None
    log_probabilities: int | None
    form: TextForm | Literal["answer"] | None


NAMES = frozenset(CallOptions.__annotations__)


def request_of(
    task: Task | str,
    prompt: str,
    given: GivenImages,
    options: CallOptions,
    study: str = "",
    study_images: Mapping[int, SentImage] | None = None,
    said: Said | None = None,
) -> tuple[ReportRequest, Asked]:
    """Build the request, as the next turn of what was `said`, and the record of its images that its result needs.

    Raises:
        InvalidInput: a path cannot be read, or an option has a value that is not one of its choices.
        TypeError: there is no such option.
    """
    check_names(options, NAMES)
    images = images_to_send(given, _selection(options), options.get("crop_to_regions", True)).images
    region = options.get("region")
    request = ReportRequest(
        task=_choice(Task, "task", task),
        images=images,
        prompt=prompt,
        language=_choice(Language, "language", options.get("language", Language.EN)),
        region=None if region is None else _choice(Region, "region", region),
        sampling=options.get("sampling", Sampling()),
        include_token_ids=options.get("include_token_ids", False),
        study=study,
        priority=options.get("priority", Priority.INTERACTIVE),
        allow_mixed_studies=options.get("allow_mixed_studies", False),
        image_tokens=options.get("image_tokens"),
        log_probabilities=options.get("log_probabilities"),
        form=options.get("form"),
    )
    request = said.before(request) if said else request
    return request, Asked(request.all_images, request.language, dict(study_images or {}), request.task)


def image_of(given: GivenImages, options: ImageOptions) -> SentImage:
    """Return the one image that is added to a study.

    Raises:
        InvalidInput: it cannot be read, or there are several.
        TypeError: there is no such option.
    """
    check_names(options, ImageOptions.__annotations__)
    images = images_to_send(given, _selection(options), options.get("crop_to_regions", True)).images
    if len(images) != 1:
        raise InvalidInput(f"A study takes one image at a time, not {len(images)}: add them one by one.")
    return images[0]


def check_names(options: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise TypeError for an unknown keyword, as Python does for a function with named parameters."""
    for name in options:
        if name not in names:
            raise TypeError(f"There is no option {name}: the options are {', '.join(sorted(names))}.")


def _selection(options: ImageOptions) -> FrameSelection:
    return FrameSelection(tuple(options.get("frames") or ()), options.get("frames_spaced", 0))


def _choice(kind: type[Choice], name: str, value: Choice | str) -> Choice:
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(str(choice.value) for choice in kind)
        raise InvalidInput(f"{name} is one of {choices}, not {value}.") from None
