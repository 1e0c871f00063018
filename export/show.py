"""Print a build's summary: its files, how near each stage is to PyTorch, what that means, and how to serve the bundle."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from echovlm_edge.export.parity import parity
from echovlm_edge.export.parity.verdict import Verdict, format_of, judge
from echovlm_edge.runtime.backends.bundle_memory import BundleShape, When, Where, total
from echovlm_edge.runtime.bundle.manifest import TOKEN_EMBEDDING, Calibration, KeptPhrases, Manifest, Parity
from echovlm_edge.runtime.contracts.tables import figures, names, new_table, print_table, readable_bytes, words
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings
from echovlm_edge.runtime.serving.supervision.server_memory import account

_TOOLS = ("echovlm-edge", "onnx", "onnx-ir", "onnxscript", "torch")
STAGES = {
    "vision_encoder": "vision encoder",
    "projector": "projector",
    "token_embedding": "token embedding",
    "prefill": "decoder, reading",
    "decode": "decoder, writing",
}
NAMED_SAMPLES = 3
STYLES = {Verdict.GOOD: "green", Verdict.LOOK: "yellow", Verdict.BAD: "red"}


def versions() -> dict[str, str]:
    """Return the versions of the toolchain, for bundle.json."""
    return {
        "python": platform.python_version(),
        **{tool: version(tool) for tool in _TOOLS},
        "onnxruntime": _onnxruntime(),
    }


def _onnxruntime() -> str:
    """Return ONNX Runtime's version, whichever of its two packages is installed."""
    try:
        return version("onnxruntime")
    except PackageNotFoundError:
        return version("onnxruntime-gpu")


def print_summary(manifest: Manifest, output: Path, warning: str, console: Console) -> None:
    """Print the end of a build: files, comparison with PyTorch, notes, memory, and the command that serves the bundle."""
    print_table(console, _files(manifest))
    if manifest.parity:
        print_table(console, _comparison(manifest))
        for line in _explanation(manifest):
            _say(console, line)
    for note in filter(None, (warning, *_notes(manifest))):
        console.print(f"[yellow]note:[/yellow] {note}", highlight=False, soft_wrap=True)
    if adapter := manifest.source.adapter:
        _say(console, f"The {adapter.kind} adapter {adapter.name} ({adapter.sha256[:12]}) is merged into the weights.")
    if manifest.calibration:
        _say(console, _calibrated(manifest.calibration))
    if manifest.phrases:
        _say(console, _drafted(manifest.phrases))
    _say(console, "")
    for line in _ending(manifest, output):
        _say(console, line)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _files(manifest: Manifest) -> Table:
    title = f"{manifest.source.name}: {manifest.precision} for {manifest.target}"
    table = new_table(title, names("file"), figures("size"), words("weights"))
    for part in manifest.parts:
        size = sum(file.bytes for file in part.files)
        table.add_row(part.files[0].name, readable_bytes(size), part.precision)
    for file in manifest.files:
        precision = manifest.embedding.dtype if file.name == TOKEN_EMBEDDING else ""
        table.add_row(file.name, readable_bytes(file.bytes), precision)
    return table


def _comparison(manifest: Manifest) -> Table:
    table = new_table(
        "Compared with the PyTorch model",
        names("stage"),
        figures("relative\nerror"),
        figures("largest\nerror"),
        figures("same\ntoken"),
        figures("KL,\nnats"),
        figures("tokens\nagree"),
        words("verdict"),
    )
    for stage, called in STAGES.items():
        if samples := [entry for entry in manifest.parity if entry.stage == stage]:
            verdict = _verdict(manifest, samples)
            table.add_row(called, *_figures(samples), f"[{STYLES[verdict]}]{verdict.value}[/]")
    return table


def _verdict(manifest: Manifest, samples: Sequence[Parity]) -> Verdict:
    found = [judge(sample, format_of(manifest, sample.stage)) for sample in samples]
    return max(found, key=list(Verdict).index)


def _figures(samples: Sequence[Parity]) -> list[str]:
    """Return the worst of a stage's samples."""
    agreements = [sample.top1_agreement for sample in samples if sample.top1_agreement is not None]
    texts = [(sample.agreed_tokens, sample.written_tokens) for sample in samples if sample.agreed_tokens is not None]
    divergences = [sample.kl_divergence for sample in samples if sample.kl_divergence is not None]
    return [
        f"{_short(100 * max(sample.relative_error for sample in samples))} %",
        _short(max(sample.max_abs_error for sample in samples)),
        f"{100 * min(agreements):.1f} %" if agreements else "",
        _short(max(divergences)) if divergences else "",
        "{} of {}".format(*min(texts)) if texts else "",
    ]


def _short(value: float) -> str:
    """Format a figure with two digits, and no exponent where a reader expects none: 15, 0.28, 1.5e-06."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _explanation(manifest: Manifest) -> Iterator[str]:
    """Explain the comparison's figures, and what its verdicts ask for."""
    samples = list(dict.fromkeys(entry.sample for entry in manifest.parity if entry.stage == "decode"))
    named = f": {'; '.join(samples)}" if len(samples) <= NAMED_SAMPLES else ""
    yield f"The worst of {len(samples)} samples{named}. The decoder reads a prompt and writes {parity.DECODED_TOKENS} tokens for each."
    yield "relative error: the length of the difference over the length of PyTorch's values."
    yield "largest error: of any one value. same token: how often both would write the same next token."
    yield "KL: how far their probabilities of the next token are apart; 0 is not at all."
    yield "tokens agree: how many tokens both write alike, each its likeliest, before the first difference."
    yield "good: what the weights' format costs. look: more than that; compare reports before you rely on it."
    if any(_verdict(manifest, [entry]) is Verdict.BAD for entry in manifest.parity):
        yield "bad: far more than the format costs. Do not serve it: build with a finer --precision, and with --sample files of yours."


def _notes(manifest: Manifest) -> Iterator[str]:
    """Note what the table does not show of a bundle for a GPU."""
    if manifest.parity_of == "graphs":
        yield "the errors are of the graphs, run by ONNX Runtime on this CPU; what runs on the GPU has not been compared."
    elif not manifest.parity:
        yield "nothing was compared with PyTorch: this install has no operator library, because there was no C++ compiler."


def _calibrated(calibration: Calibration) -> str:
    texts = "texts" if calibration.answers else "prompts without answers"
    return (
        f"Calibrated with {calibration.pictures} pictures and {texts}, {calibration.tokens:,} tokens; a weight of the decoder's layers "
        f"takes {calibration.bits:g} bits with its scales. Evaluate it on other pictures."
    )


def _drafted(phrases: KeptPhrases) -> str:
    return (
        f"Drafts are guessed from {phrases.reports:,} reports: {phrases.kept:,} of their {phrases.found:,} contexts are kept, those of "
        f"phrases that at least {phrases.shared_by} of them share."
    )


def _ending(manifest: Manifest, output: Path) -> Iterator[str]:
    """Tell where the bundle is, what it takes, and which command comes next."""
    size = readable_bytes(sum(file.bytes for file in manifest.all_files()))
    if manifest.finish_with:
        yield f"The bundle is {output} ({size}); its engines are still to be built. Copy it to the device and run there:"
        yield f"  sh {shlex.quote(str(output / manifest.finish_with))}"
        return
    items = account(BundleShape.of(manifest), ServeSettings(bundle=output))
    start, used = (total(items, Where.HOST, *times) for times in ((When.START,), (When.START, When.USED)))
    card = total(items, Where.GPU, When.START, When.USED)
    memory = f"{readable_bytes(start)} of memory at start, up to {readable_bytes(used)} as it is used"
    memory += f", and {readable_bytes(card)} of the GPU's" if card else ""
    yield f"The bundle is {output} ({size}). Serving it takes {memory}:"
    yield f"  echovlm-serve --bundle {shlex.quote(str(output))}"
