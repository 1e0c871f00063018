"""`echovlm-build --phrases`: which reports are read, what of them is kept, and that the bundle's table is the one that was made."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from tokenizers import Tokenizer

from echovlm_edge.export import build_engines
from echovlm_edge.export.build_options import PhraseOptions
from echovlm_edge.export.bundle.phrases import make_phrases
from echovlm_edge.export.bundle.report_texts import read_reports
from echovlm_edge.export.progress import Progress
from echovlm_edge.export.show import print_summary
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.runtime.bundle.manifest import MANIFEST, TOKENIZER, Bundle
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.drafting.bundle_phrases import PHRASES, bundle_phrases
from echovlm_edge.runtime.drafting.phrase_counts import ORDERS
from echovlm_edge.runtime.drafting.phrase_table import PhraseTable
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from tests.support import golden
from tests.support.evaluation_data import conversation, messages

REPORTS = ("The liver is normal.", "The liver is large.", "The liver is normal. No mass.", "The left kidney is normal.")


def build(output: Path, *options: str | Path) -> int:
    command = ["--checkpoint", golden.CHECKPOINT, "--output", output, "--precision", "fp32", *options]
    return build_engines.main(list(map(str, command)))


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """A text file with a report on each line."""
    file = tmp_path / "reports.txt"
    file.write_text("\n".join(REPORTS) + "\n\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def bundle(shared_traces: None, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with the phrases that three of `REPORTS` share."""
    folder = tmp_path_factory.mktemp("phrases")
    (folder / "reports.txt").write_text("\n".join(REPORTS), encoding="utf-8")
    assert build(folder / "bundle", "--phrases", folder / "reports.txt") == 0
    return Bundle(folder / "bundle", verify=True)


def write_rows(file: Path, *rows: object) -> Path:
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def test_every_form_of_reports_is_read(lines: Path, tmp_path: Path) -> None:
    (tmp_path / "folder" / "2025").mkdir(parents=True)
    (tmp_path / "folder" / "2025" / "one.txt").write_text("First line.\nSecond line.\n")
    (tmp_path / "folder" / "notes.md").write_text("No report.")
    rows = write_rows(
        tmp_path / "rows.json",
        conversation("1", ["a.png", "b.png"], "报告？", "肝脏正常。"),
        messages("2", ["c.png"], "Finding?", "A cyst.", "Side?", "Left."),
        {"id": "3"},
        conversation("4", ["b.png"], "?", "正常。"),
    )
    skipped = list[str]()
    found = read_reports([lines, tmp_path / "folder", rows], skipped.append)
    assert [text.text for text in found] == [
        *REPORTS,
        "First line.\nSecond line.",
        "肝脏正常。",
        "正常。",
        "A cyst.",
        "Left.",
    ]
    assert [text.study for text in found] == [0, 1, 2, 3, 4, 5, 5, 6, 6]  # rows that share a picture are of one patient
    assert skipped == ["rows.json, row 3 (3) is left out of the phrases: it has neither conversations nor messages."]


def test_a_bundle_brings_its_phrases(bundle: Bundle) -> None:
    table, kept = bundle_phrases(bundle), bundle.manifest.phrases
    assert table is not None and kept is not None
    tokenizer = Tokenizer.from_str(bundle.text(TOKENIZER))
    stop = bundle.manifest.model.stop_token_ids[0]
    texts = [[*tokenizer.encode(text, add_special_tokens=False).ids, stop] for text in REPORTS]
    expected = PhraseTable.build(texts, 3)
    assert (table.keys.tolist(), table.tokens.tolist()) == (expected.keys.tolist(), expected.tokens.tolist())
    assert (kept.reports, kept.shared_by, kept.kept) == (4, 3, len(expected))
    assert kept.found == len(PhraseTable.build(texts, 1))
    console = Console(record=True, file=io.StringIO(), width=200)
    print_summary(bundle.manifest, bundle.path, "", console)
    said = console.export_text()
    assert f"guessed from 4 reports: {kept.kept} of their {kept.found} contexts are kept" in said and PHRASES in said
    guess = table.following(texts[0][:2])
    assert guess is not None and guess.token == texts[0][2]


def test_a_bundle_without_phrases_has_no_table(golden_bundle: Path) -> None:
    assert bundle_phrases(Bundle(golden_bundle)) is None


def test_a_damaged_table_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    output = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    file = output / PHRASES
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(NotPossibleHere, match=r"phrases\.bin has changed since it was built .*copy it or build"):
        bundle_phrases(Bundle(output))
    with pytest.raises(NotPossibleHere, match=r"phrases\.bin has changed"):
        ReportEngine.open(output)
    ReportEngine.open(output, options=EngineOptions(1, 0, 0, drafting=False)).close()
    manifest = json.loads((output / MANIFEST).read_text())
    manifest["model"]["vocab_size"] = 2
    file.write_bytes(whole)
    (output / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(NotPossibleHere, match=r"phrases\.bin is damaged"):
        bundle_phrases(Bundle(output))
    file.unlink()
    with pytest.raises(NotPossibleHere, match=r"phrases\.bin is missing"):
        Bundle(output)


def test_no_phrases_are_of_one_patient(lines: Path, tmp_path: Path) -> None:
    """Many rows about one study are one report."""
    rows = [conversation(str(number), ["a.png"], "?", "Only this patient has seven cysts.") for number in range(9)]
    file = write_rows(tmp_path / "rows.json", *rows)
    checkpoint, progress = Checkpoint(golden.CHECKPOINT), Progress(Console(quiet=True))
    with_rows = make_phrases(PhraseOptions((lines, file), 2), checkpoint, progress)
    alone = make_phrases(PhraseOptions((file,), 1), checkpoint, progress)
    assert with_rows is not None and alone is not None
    assert (with_rows.kept.reports, alone.kept.reports) == (5, 1)
    ids = Tokenizer.from_str(checkpoint.tokenizer_json()).encode("patient has seven", add_special_tokens=False).ids
    assert alone.table.following(ids).order == ORDERS  # type: ignore[union-attr]
    known = with_rows.table.following(ids)
    assert known is None or known.order < ORDERS


@pytest.mark.parametrize("planned", [(), ("--plan",)])
@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        (
            None,
            (),
            r"reports\.txt cannot be read \(No such file or directory\): give a text file with a report on each",
        ),
        (b"\xff\xfe\x00", (), r"reports\.txt are not UTF-8 text: convert them"),
        (b" \n\n", (), r"no report in .*reports\.txt: give a text file"),
        (b"One.\nTwo.\n", (), r"No 3 of the 2 reports of --phrases share a phrase: .* lower --phrases-shared-by"),
        (b"One.\nTwo.\n", ("--phrases-shared-by", "0"), r"--phrases-shared-by 0 .* at least 1"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_build(
    content: bytes | None,
    options: tuple[str, ...],
    sentence: str,
    planned: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(build_engines, "traced_parts", None)
    file = tmp_path / "reports.txt"
    if content is not None:
        file.write_bytes(content)
    assert build(tmp_path / "bundle", "--phrases", file, *options, *planned) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(sentence, error), error
    assert not (tmp_path / "bundle").exists()


def test_other_files_and_lone_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for options, sentence in {
        ("--phrases", str(tmp_path / "rows.json")): "is not a list",
        ("--phrases", str(tmp_path / "empty")): "no report in",
        ("--phrases-shared-by", "5"): "give --phrases with it",
    }.items():
        assert build(tmp_path / "bundle", *options) == 2
        assert sentence in capsys.readouterr().err


def test_the_plan_counts_the_table(lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(tmp_path / "bundle", "--phrases", lines, "--plan") == 0
    assert PHRASES in capsys.readouterr().out
