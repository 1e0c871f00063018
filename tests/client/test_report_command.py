"""`echovlm-report` and the Python client: every option arrives in the request, every field of the result is printed."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.client import report_command
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.contracts.errors import Busy, InvalidInput, NotPossibleHere, Unavailable, UserError
from echovlm_edge.runtime.contracts.request import Event, GenerationRequest, ImageInput
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.support.decoding_engine import DecodingEngine
from tests.support.dicom_files import png
from tests.support.recording_service import USAGE, Recording, recording_service


@pytest.fixture
def recording() -> Iterator[tuple[Recording, str]]:
    with recording_service() as found:
        yield found


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name, size in (("a.png", 8), ("b.png", 16), ("c.png", 32)):
        (tmp_path / name).write_bytes(png(size, size))
    return sorted(tmp_path.iterdir())


def test_every_image_and_frame_is_sent_however_often_the_option_is_given(
    recording: tuple[Recording, str], files: list[Path]
) -> None:
    servicer, address = recording
    first, second, third = map(str, files)
    words = ["--server", address, "--image", first, "--image", second, third, "--frames", "0,5", "--frames", "9"]
    assert report_command.main(words) == 0
    assert [image.data for image in servicer.report.images] == [file.read_bytes() for file in files]
    assert all(list(image.frames.indices.index) == [0, 5, 9] for image in servicer.report.images)


def test_follow_ups_have_what_was_said_before(
    recording: tuple[Recording, str], files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    servicer, address = recording
    servicer.result.prompt = "Asked"
    words = ["--server", address, "--image", str(files[0]), "--system", "Be brief.", "--json"]
    assert report_command.main([*words, "--then", "Why?", "--then", "Sure?"]) == 0
    assert servicer.report.conversation == pb.Conversation(system_prompt="Be brief.")
    asked = servicer.question
    assert asked.question == "Sure?" and not asked.images and asked.conversation.system_prompt == "Be brief."
    turns = asked.conversation.turns
    assert [(turn.prompt, turn.reply, len(turn.images)) for turn in turns] == [
        ("Asked", "Done", 1),
        ("Asked", "Done", 0),
    ]
    assert turns[0].images[0].data == files[0].read_bytes()
    printed = json.loads(capsys.readouterr().out)
    assert printed["text"] == "Done" and [then["prompt"] for then in printed["then"]] == ["Asked", "Asked"]


@pytest.mark.parametrize("options", [["--then", "Why?"], ["--system", "Be brief."], ["--task", "findings"]])
def test_an_old_server_is_not_asked_what_it_would_ignore(
    recording: tuple[Recording, str], files: list[Path], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    servicer, address = recording
    servicer.limits.max_turns = 0
    assert report_command.main(["--server", address, "--image", str(files[0]), *options]) == 2
    assert "This server is too old" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "parts", "form"),
    [
        ("findings", pb.REPORT_PARTS_FINDINGS, 0),
        ("judge", 0, pb.ANSWER_FORM_TRUE_FALSE),
        ("choice", 0, pb.ANSWER_FORM_LETTER),
    ],
)
def test_every_task_is_asked_for(
    recording: tuple[Recording, str], files: list[Path], task: str, parts: int, form: int
) -> None:
    servicer, address = recording
    words = ["--server", address, "--image", str(files[0]), "--task", task, "--prompt", "A. Cyst. B. Nodule."]
    assert report_command.main(words) == 0
    assert (servicer.report.parts, servicer.question.form) == (parts, form)
    assert (servicer.report.prompt or servicer.question.question) == "A. Cyst. B. Nodule."


@pytest.mark.parametrize("allowed", [False, True])
def test_mixed_studies_are_asked_for(recording: tuple[Recording, str], files: list[Path], allowed: bool) -> None:
    servicer, address = recording
    words = ["--server", address, "--image", str(files[0]), *(["--allow-mixed-studies"] if allowed else [])]
    assert report_command.main(words) == 0
    assert servicer.report.options.allow_mixed_studies == allowed
    with Connection(address) as client:
        client.add_image("study", ImageInput(b"image"), allow_mixed_studies=allowed)
    assert servicer.added.allow_mixed_studies == allowed and servicer.added.study == "study"


CINE = {"width": 1024, "height": 768, "model_width": 420, "model_height": 336, "tokens": 180}
PICTURES = [
    pb.Picture(study_image=7, frame_count=1, **CINE),
    pb.Picture(
        image=1,
        frame=3,
        frame_count=30,
        box=pb.Box(left=100, top=50, right=900, bottom=700),
        window=pb.Window(center=2048, width=4096),
        notes=["5 of 30 frames are there."],
        **CINE,
    ),
    pb.Picture(image=1, frame=4, frame_count=30, **CINE),
    pb.Picture(image=2, frame_count=1, box=pb.Box(right=1024, bottom=768), **CINE),
]


def test_json_lists_what_the_model_was_shown(
    recording: tuple[Recording, str], files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recording[0].result.pictures.extend(PICTURES)
    recording[0].result.notes.append("The text repeats itself.")
    assert report_command.main(["--server", recording[1], "--image", *map(str, files[:2]), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["notes"] == ["The text repeats itself."]
    study, third, _, still = printed["pictures"]
    assert third == {
        "file": "a.png",
        "frame": 3,
        "frame_count": 30,
        "width": 1024,
        "height": 768,
        "box": {"left": 100, "top": 50, "right": 900, "bottom": 700},
        "window": {"center": 2048.0, "width": 4096.0},
        "model_width": 420,
        "model_height": 336,
        "tokens": 180,
        "notes": ["5 of 30 frames are there."],
    }
    assert (study["file"], still["file"], still["window"]) == ("image 7 of the study", "b.png", None)


@pytest.mark.parametrize("count", [1, 5])
def test_what_the_model_was_shown_is_printed_within_80_columns(
    recording: tuple[Recording, str],
    tmp_path: Path,
    count: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = "1.2.840.113619.[red]2.98.1234.1417617600.0.3\x1b[31m.png"
    (tmp_path / name).write_bytes(png(8, 8))
    recording[0].result.pictures.extend(PICTURES[1:2] * count)
    recording[0].result.notes.append("The text [names] the left side.")
    assert report_command.main(["--server", recording[1], "--image", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert all(len(line) <= 80 for line in said.splitlines())
    assert said.count("3 of 30  1024x768  100-900, 50-700  0 to 4096  420x336     180") == count
    assert "[red]" in said and "\x1b[31m.png" not in said
    assert said.count("frames are there") == 1, "a note is said once a file"
    assert "Please check: The text [names] the left side." in said


def test_a_name_that_is_no_text_is_printed_all_the_same(
    recording: tuple[Recording, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / os.fsdecode(b"\xff.png")
    path.write_bytes(png(8, 8))
    recording[0].result.pictures.append(PICTURES[1])
    assert report_command.main(["--server", recording[1], "--image", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"][0]["file"] == "\ufffd.png"


def test_a_column_that_says_nothing_is_left_out(
    recording: tuple[Recording, str], files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recording[0].result.pictures.append(PICTURES[3])
    assert report_command.main(["--server", recording[1], "--image", *map(str, files[:2])]) == 0
    said = capsys.readouterr().err
    assert re.search(r"b\.png +1024x768 +420x336 +180\b", said)
    assert not [word for word in ("frame", "window", "kept") if word in said]


def test_a_folder_stands_for_its_images(
    recording: tuple[Recording, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, data in {"a/1.png": png(8, 8), "a/2.png": png(16, 16), "a/t": b"t", "b/1.png": png(24, 24)}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    servicer, address = recording
    servicer.result.pictures.extend(pb.Picture(image=number, frame_count=1) for number in (1, 2, 3))
    folders = [str(tmp_path / "b"), str(tmp_path / "a")]
    assert report_command.main(["--server", address, "--image", *folders, "--json"]) == 0
    assert [image.data for image in servicer.report.images] == [png(24, 24), png(8, 8), png(16, 16)]
    said = capsys.readouterr()
    assert said.err == "1 file that is no image was skipped.\n"
    names = [picture["file"] for picture in json.loads(said.out)["pictures"]]
    assert names == [str(tmp_path / "b" / "1.png"), str(tmp_path / "a" / "1.png"), "2.png"], "no two look the same"


def test_an_empty_folder_is_one_sentence(
    recording: tuple[Recording, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_command.main(["--server", recording[1], "--image", str(tmp_path)]) == 2
    assert f"error: The folder {tmp_path} holds no image" in capsys.readouterr().err


def test_an_image_may_come_through_a_pipe(recording: tuple[Recording, str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writing = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(png(8, 8),))
    writing.start()
    assert report_command.main(["--server", recording[1], "--image", str(tmp_path / "pipe")]) == 0
    writing.join()
    assert [image.data for image in recording[0].report.images] == [png(8, 8)]


def test_json_has_every_count(
    recording: tuple[Recording, str], files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_command.main(["--server", recording[1], "--image", str(files[0]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["usage"] == USAGE


def test_progress_is_said_in_megabytes() -> None:
    said: list[str] = []
    status = SimpleNamespace(update=said.append)
    for sent, total in ((120 << 20, (400 << 20) - 5), (1, 1), (1 << 20, 1 << 20)):
        report_command._say_sent(status, sent, total)  # type: ignore[arg-type]
    assert said == ["sending 120 of 400 MB", "sending 0 of 1 MB", "sending 1 of 1 MB"]


def test_the_calls_id_is_in_json_and_in_the_summary(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    server = ReportServer(DecodingEngine(), ServerOptions("127.0.0.1:0", grace_seconds=0.1))
    try:
        words = ["--server", server.address, "--image", str(files[0])]
        assert report_command.main([*words, "--json"]) == 0
        assert re.fullmatch("[0-9a-f]{16}", json.loads(capsys.readouterr().out)["request_id"])
        assert report_command.main(words) == 0
        assert re.search(r"bundle\s+b,\s+request\s+[0-9a-f]{16}\.", capsys.readouterr().err)
    finally:
        server.stop()


def test_ones_own_studies_are_listed_and_ended(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    server = ReportServer(DecodingEngine(), ServerOptions("127.0.0.1:0", grace_seconds=0.1))
    try:
        with Connection(server.address) as client:
            client.add_image(client.begin_study(), ImageInput(files[2].read_bytes()))
            client.begin_study()
        asked = ["--server", server.address, "--studies"]
        assert report_command.main([*asked, "--json"]) == 0
        listed = json.loads(capsys.readouterr().out)
        by_images = {study["images"]: study["id"] for study in listed["studies"]}
        assert set(by_images) == {0, 1} and listed["max_studies"] == 64
        first, second = by_images[1], by_images[0]
        assert report_command.main([*asked, "--end-study", first]) == 0
        said = capsys.readouterr().out
        assert second in said and first not in said and "1 of 64 studies are open." in said
        assert report_command.main(["--server", server.address, "--end-study", first]) == 2
        assert "There is no such study" in capsys.readouterr().err
        assert report_command.main([*asked, "--image", str(files[0])]) == 2
    finally:
        server.stop()


NEWER = 99  # a stage that this client does not know
WIRE = ("QUEUE", "DECODING_IMAGES", "DECODE", "PREPROCESSING", "VISION", "WAIT", "PREFILL", "PROMPT")


def test_stages_stand_in_the_order_of_time_under_the_profilers_names(
    recording: tuple[Recording, str], files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON keeps the names of the contract."""
    servicer, address = recording
    stages = [pb.StageTime(stage=pb.Stage.Value(f"STAGE_{name}"), seconds=1) for name in WIRE]
    stages.insert(0, pb.StageTime(stage=NEWER, seconds=1))  # type: ignore[arg-type] # proto3's enums are open
    servicer.result.timings.CopyFrom(pb.Timings(stages=stages, total_seconds=9))
    words = ["--server", address, "--image", str(files[0])]
    assert report_command.main(words) == 0
    rows = re.findall(r"^ +([a-z 0-9]+?) +[0-9.]+ *$", capsys.readouterr().err, re.MULTILINE)
    assert rows == [
        *("decode images", "preprocess", "vision", "prompt", "queue", "prefill", "decode", "wait", "stage 99"),
        *("first token", "total"),
    ]
    assert report_command.main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["timings"]["stages"]
    assert set(told) == {*(name.lower() for name in WIRE), "stage_99"}


def test_frames_of_one_file(recording: tuple[Recording, str], files: list[Path]) -> None:
    servicer, address = recording
    real = files[0].with_name("d@7.png")
    real.write_bytes(png(8, 8))
    words = ["--server", address, "--frames", "9", "--image", f"{files[0]}@0,5", str(files[1]), str(real), f"{real}@3"]
    assert report_command.main(words) == 0
    assert [list(image.frames.indices.index) for image in servicer.report.images] == [[0, 5], [9], [9], [3]]


class Failing(DecodingEngine):
    """Raises what it is told to, or never answers."""

    error: UserError | None = None

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        while not self.error:
            if stopped():
                return
            time.sleep(0.01)
        raise self.error
        yield


@pytest.mark.parametrize(
    ("error", "words", "code"),
    [
        (InvalidInput("Wrong."), [], 2),
        (NotPossibleHere("Never."), [], 2),
        (Busy("Full.", 60), [], 3),
        (Unavailable("Shutting down."), [], 4),
        (None, ["--timeout", "0.5"], 5),
    ],
)
def test_exit_codes(
    error: UserError | None, words: list[str], code: int, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Failing()
    engine.error = error
    server = ReportServer(engine, ServerOptions("127.0.0.1:0", grace_seconds=0.1))
    try:
        assert report_command.main(["--server", server.address, "--image", str(files[0]), *words]) == code
    finally:
        server.stop()
    assert f"error: {error or 'The server did not finish'}" in capsys.readouterr().err


def test_help_lists_the_exit_codes_within_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        report_command.main(["--help"])
    said = capsys.readouterr().out
    assert all(line in said for line in report_command.EXIT_CODES.splitlines())
    assert max(map(len, said.splitlines())) <= 80
