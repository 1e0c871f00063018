"""Run `echovlm-report`: ask a server about image files and stream the text; --json prints one object, --sr and --fhir write files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.status import Status
from rich.table import Table

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.client import picture_list, study_list
from echovlm_edge.runtime.client.command_options import (
    add_credentials,
    add_image_tokens,
    add_sampling,
    read_credentials,
    read_sampling,
)
from echovlm_edge.runtime.client.given_images import images_to_send
from echovlm_edge.runtime.client.report import STAGE_OF_WIRE
from echovlm_edge.runtime.client.result_json import as_json
from echovlm_edge.runtime.client.wire.attempts import Retries
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.requests import ReportRequest, followed
from echovlm_edge.runtime.clinical.documents import asked_documents
from echovlm_edge.runtime.clinical.statements import authorship
from echovlm_edge.runtime.contracts.addresses import DEFAULT_ADDRESS
from echovlm_edge.runtime.contracts.command import add_version, run_command
from echovlm_edge.runtime.contracts.errors import InvalidInput, ServerUnavailable
from echovlm_edge.runtime.contracts.image_path import SentImage
from echovlm_edge.runtime.contracts.request import FrameSelection
from echovlm_edge.runtime.contracts.stages import ORDER, words
from echovlm_edge.runtime.contracts.tasks import Language, Region, Task
from echovlm_edge.runtime.formats.media_types import TAKEN
from echovlm_edge.runtime.resources.atomic_file import write_whole

CONNECT_SECONDS = 10.0
EXIT_CODES = """exit codes:
  0  the report was written
  2  wrong input, or refused by the server
  3  the server is busy: try again later
  4  the server cannot be reached
  5  the time given by --timeout is over
  130  interrupted"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    return run_command(lambda: _report(options))


def _report(options: argparse.Namespace) -> int:
    if options.timeout is not None and options.timeout <= 0:
        raise InvalidInput(f"--timeout must be above 0 seconds, got {options.timeout}.")
    if options.retries < 0:
        raise InvalidInput(f"--retries must be 0 or more, got {options.retries}.")
    if options.studies or options.end_study:
        return _studies(options)
    request = _request(options)
    # Before the call, so that nobody waits for a report that could not be written.
    documents = asked_documents(options.sr, options.fhir, request.images, request.language, request.task)
    names, then = [image.name for image in request.images], list[dict[str, Any]]()  # --then sends no images of its own
    with _connected(options) as client:
        result, request_id = _answer(client, request, options)
        for path, write_document in documents:
            write_whole(path, write_document(result, request_id))
        answer = as_json(result, names, request_id)
        for question in options.then:
            request = followed(request, result, question)
            result, request_id = _answer(client, request, options)
            then.append(as_json(result, names, request_id))
    if options.json:
        print(json.dumps(answer | ({"then": then} if then else {}), ensure_ascii=False))
    return 0


def _answer(client: Connection, request: ReportRequest, options: argparse.Namespace) -> tuple[pb.Result, str]:
    """Ask, and print the text as it comes and what belongs to it, except for --json; returns the result and the request's id."""
    result: pb.Result | None = None
    request_ids, progress = [""], Console(stderr=True)
    with progress.status("sending") as status:
        write = _ignore if options.json else _write(status.stop)
        sending = partial(_say_sent, status)
        for event in client.generate(request, options.timeout, sending, request_ids.append):
            match event.WhichOneof("event"):
                case "stage_started":
                    status.update(_words(event.stage_started))
                case "text":
                    write(event.text)
                case "result":
                    result = event.result
    if result is None:
        raise ServerUnavailable(f"The server at {options.server} ended the stream without a result: see its log.")
    if not options.json:
        print(flush=True)
        picture_list.print_pictures(result.pictures, [image.name for image in request.all_images], progress)
        _summarise(result, progress, request_ids[-1])
    return result, request_ids[-1]


def _studies(options: argparse.Namespace) -> int:
    if options.image or options.prompt:
        raise InvalidInput("--studies and --end-study ask about no images: leave out --image and --prompt.")
    with _connected(options) as client:
        return study_list.run(client, options.end_study, options.studies, options.json, options.timeout)


@contextmanager
def _connected(options: argparse.Namespace) -> Iterator[Connection]:
    with Connection(options.server, read_credentials(options), Retries(options.retries + 1)) as client:
        client.wait_until_ready(min(CONNECT_SECONDS, options.timeout or CONNECT_SECONDS))
        yield client


def _summarise(result: pb.Result, console: Console, request_id: str) -> None:
    answer = as_json(result)
    stages: dict[str, float] = answer["timings"]["stages"]
    table = Table(box=box.SIMPLE)
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for timed in sorted(result.timings.stages, key=_place):
        table.add_row(_words(timed.stage), f"{timed.seconds:.3f}")
    table.add_row("first token", f"{result.timings.first_token_seconds:.3f}")
    table.add_row("total", f"{result.timings.total_seconds:.3f}")
    usage = answer["usage"]
    rate = usage["generated_tokens"] / stages["decode"] if stages.get("decode") else 0.0
    console.print(table)
    console.print(
        f"{usage['prompt_tokens']} prompt tokens ({usage['image_tokens']} of images, {usage['reused_tokens']} reused), "
        f"{usage['generated_tokens']} generated "
        f"at {rate:.1f} tokens/s, ended by {answer['finish_reason']}."
    )
    for note in result.notes:
        console.print(f"Please check: {note}", markup=False)
    console.print(f"{result.notice} {authorship(result, request_id)}")


def _request(options: argparse.Namespace) -> ReportRequest:
    selection = FrameSelection(_frames(",".join(options.frames)), options.frames_spaced)
    task = Task(options.task) if options.task else Task.REPORT if options.image else Task.QUESTION
    return ReportRequest(
        task=task,
        images=_images(options.image, selection, not options.no_crop),
        prompt=options.prompt,
        language=Language(options.language),
        region=Region(options.region) if options.region else None,
        sampling=read_sampling(options),
        include_token_ids=options.json,
        allow_mixed_studies=options.allow_mixed_studies,
        image_tokens=options.image_tokens,
        system=options.system,
    )


def _images(given: Sequence[str], selection: FrameSelection, crop_to_regions: bool) -> tuple[SentImage, ...]:
    found = images_to_send(given, selection, crop_to_regions)
    if found.skipped:
        print(
            f"{found.skipped} {'file that is no image was' if found.skipped == 1 else 'files that are no images were'} skipped.",
            file=sys.stderr,
        )
    return found.images


def _frames(listed: str) -> tuple[int, ...]:
    try:
        return tuple(int(index) for index in listed.split(",") if index)
    except ValueError:
        raise InvalidInput(f"--frames {listed} is not a list of numbers: write for example --frames 0,5,9.") from None


def _write(before: Callable[[], None]) -> Callable[[str], None]:
    def write(text: str) -> None:
        before()
        sys.stdout.write(text)
        sys.stdout.flush()

    return write


def _say_sent(status: Status, sent: int, total: int) -> None:
    status.update(f"sending {sent >> 20} of {-(-total // (1 << 20))} MB")


def _ignore(_: str) -> None: ...


def _words(stage: int) -> str:
    return words(STAGE_OF_WIRE[stage].value) if stage in STAGE_OF_WIRE else f"stage {stage}"


def _place(timed: pb.StageTime) -> int:
    return ORDER.index(STAGE_OF_WIRE[timed.stage].value) if timed.stage in STAGE_OF_WIRE else len(ORDER)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="echovlm-report",
        description="Ask a report server about ultrasound images.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_version(parser)
    add = parser.add_argument
    add("--server", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help=f"default {DEFAULT_ADDRESS}")
    add(
        "--image",
        nargs="*",
        action="extend",
        default=[],
        metavar="PATH",
        help=f"images in order, each {TAKEN}; a folder or a DICOMDIR stands for its images; cine.dcm@0,5 for frames 0 and 5 of one cine",
    )
    add("--task", choices=[task.value for task in Task], help="default: report with images, question without")
    add(
        "--prompt",
        default="",
        metavar="TEXT",
        help="replaces the task's default; the question, the statement to judge, or the options",
    )
    add("--system", default="", metavar="TEXT", help="a system prompt, in place of the model's own")
    add(
        "--then",
        action="append",
        default=[],
        metavar="QUESTION",
        help="ask this next, with what was said before; can be given several times",
    )
    add("--language", choices=[language.value for language in Language], default=Language.EN.value)
    regions = [region.value for region in Region]
    add(
        "--region",
        choices=regions,
        metavar="REGION",
        help=f"where the images were taken, if it is known: {', '.join(regions)}",
    )
    add(
        "--frames",
        action="append",
        default=[],
        metavar="0,5,9",
        help="frames of every cine, counted from 0 (default: its middle one)",
    )
    add("--frames-spaced", type=int, default=0, metavar="N", help="take N evenly spaced frames of a cine")
    add(
        "--allow-mixed-studies",
        action="store_true",
        help="take images of several studies of one patient (of two patients they are always refused)",
    )
    add_image_tokens(parser)
    add("--no-crop", action="store_true", help="keep what lies outside a DICOM file's B-mode regions")
    add_sampling(parser)
    add("--timeout", type=float, metavar="SECONDS", help="give up after this time")
    add(
        "--retries",
        type=int,
        default=0,
        metavar="N",
        help="repeat the call up to N times if the server is busy or unavailable (default 0)",
    )
    add_credentials(parser)
    add("--sr", type=Path, metavar="F", help="write the result to F as a DICOM Basic Text SR about the DICOM images")
    add("--fhir", type=Path, metavar="F", help="write the result to F as a FHIR R4 DiagnosticReport")
    add("--studies", action="store_true", help="list your own open studies, and ask about no images")
    add(
        "--end-study",
        action="append",
        default=[],
        metavar="ID",
        help="end one of your studies by its id in that list",
    )
    add("--json", action="store_true", help="print one JSON object, token ids included, and nothing else")
    return parser
