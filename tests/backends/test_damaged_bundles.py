"""A bundle's files missing, cut short, garbled or of another kind: always one sentence that names the file and the fix."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from echovlm_edge.runtime.bundle.manifest import CHAT_TEMPLATE, MANIFEST, TOKEN_EMBEDDING, TOKENIZER, Bundle
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.contracts.request import GenerationRequest, Sampling
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.prompting.prompt import PromptBuilder

TEXTS = (MANIFEST, TOKENIZER, CHAT_TEMPLATE)
GRAPHS = ("decoder.onnx", "projector.onnx", "vision_encoder.onnx")
WEIGHTS = ("decoder.data", "projector.data", "vision_encoder.data", TOKEN_EMBEDDING)


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def lock(file: Path) -> None:
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("this user may read everything")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "cut short": lambda file: os.truncate(file, file.stat().st_size // 2),
    "a folder": replace_by_folder,
    "a link to nothing": lambda file: (file.unlink(), file.symlink_to("nowhere")),
    "a link to itself": lambda file: (file.unlink(), file.symlink_to(file.name)),
    "unreadable": lock,
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "not UTF-8": lambda file: file.write_bytes(b"\xff" * file.stat().st_size),
    "brackets": lambda file: file.write_bytes(b"[" * file.stat().st_size),
    "tags": lambda file: file.write_bytes((b"{%" * file.stat().st_size)[: file.stat().st_size]),
    "text": lambda file: file.write_bytes((b"Why? " * file.stat().st_size)[: file.stat().st_size]),
}


@pytest.fixture
def bundle(golden_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden_bundle, tmp_path / "bundle"))


def open_and_ask(bundle: Path) -> None:
    """Serve one request from it, as far as that goes."""
    engine = ReportEngine.open(bundle, threads=1, options=EngineOptions(1, 0, 0))
    try:
        list(engine.generate(GenerationRequest("Why?", sampling=Sampling(max_new_tokens=1))))
    finally:
        engine.close()


def describe_again(bundle: Path, name: str) -> None:
    """Let bundle.json state the size that a file has, as if it had been built so."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    for file in [*manifest["files"], *(file for part in manifest["parts"] for file in part["files"])]:
        if file["name"] == name:
            file["bytes"] = (bundle / name).stat().st_size
    (bundle / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*TEXTS, *GRAPHS])
def test_a_damaged_file_is_one_sentence(name: str, damage: str, bundle: Path) -> None:
    DAMAGES[damage](bundle / name)
    with pytest.raises(NotPossibleHere) as refused:
        open_and_ask(bundle)
    sentence = str(refused.value)
    assert sentence.count("\n") == 0 and "build" in sentence
    assert str(bundle / name) in sentence or f"There is no bundle at {bundle}" in sentence


@pytest.mark.parametrize(
    "damage", [name for name in DAMAGES if name not in ("zeros", "not UTF-8", "brackets", "text", "tags")]
)
@pytest.mark.parametrize("name", WEIGHTS)
def test_damaged_weights_are_one_sentence(name: str, damage: str, bundle: Path) -> None:
    DAMAGES[damage](bundle / name)
    with pytest.raises(NotPossibleHere, match="build the bundle again"):
        open_and_ask(bundle)


@pytest.mark.parametrize("name", [TOKENIZER, CHAT_TEMPLATE, *GRAPHS, *WEIGHTS])
def test_a_file_that_was_cut_short_when_it_was_built_is_one_sentence(name: str, bundle: Path) -> None:
    os.truncate(bundle / name, (bundle / name).stat().st_size // 2)
    describe_again(bundle, name)
    with pytest.raises(NotPossibleHere, match="build the bundle again"):
        open_and_ask(bundle)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{{ messages[7].content }}",
        "{{ messages.nothing.at.all }}",
        "{% for message in messages %}{{ message.content }}{% endfor %}",  # a list's own spelling in place of images
        "Hello.",
        "",
        "{% include 'other' %}",
        "{{ raise_exception('no') }}",
        "(" * 3 + "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}",
    ],
)
def test_a_template_that_cannot_render_a_conversation_is_refused_at_the_start(template: str, bundle: Path) -> None:
    (bundle / CHAT_TEMPLATE).write_text(template)
    describe_again(bundle, CHAT_TEMPLATE)
    with pytest.raises(NotPossibleHere, match=rf"{CHAT_TEMPLATE}.*build the bundle again"):
        open_and_ask(bundle)


def test_another_models_tokenizer_is_refused_at_the_start(bundle: Path) -> None:
    tokenizer = json.loads((bundle / TOKENIZER).read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": 10**6, "content": "<|other|>"})
    (bundle / TOKENIZER).write_text(json.dumps(tokenizer))
    describe_again(bundle, TOKENIZER)
    with pytest.raises(NotPossibleHere, match=rf"{TOKENIZER} is not its model's"):
        open_and_ask(bundle)


def places(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON document."""
    if where:
        yield where
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*where, key))


JSON = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 3, 7, 10**6, 10**12, 10**30, 1.5, -0.0, float("nan"), float("inf")]),
    st.sampled_from(
        ["", ".", "..", "/", "/etc/passwd", "../x", "x" * 5000, "a\0b", "float16", "int8", "float", "nonsense"]
    ),
    st.sampled_from([[], {}, [[]], [{}], {"a": 1}, [1, 2, 3]]),
)


def test_a_rotary_embedding_of_no_heads_width_is_refused_before_it_is_made(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["model"]["mrope_section"][0] = 10**12  # terabytes of frequencies
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(NotPossibleHere, match=rf"{MANIFEST}.*damaged at model"):
        ReportEngine.open(bundle)


def test_a_bundle_of_a_shorter_context_than_asked_for_is_refused_at_the_start(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["limits"]["max_sequence"] = 1
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InvalidInput, match="--max-sequence 64 is more than the bundle's context of 1 tokens:"):
        ReportEngine.open(bundle, threads=1, max_sequence=64, options=EngineOptions(1, 0, 0))


@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_bundle_json_says_is_served_or_refused_in_one_sentence(bundle: Path, data: st.DataObject) -> None:
    whole = (bundle / MANIFEST).read_bytes()
    manifest = json.loads(whole)
    serving = [place for place in places(manifest) if place[0] not in ("parity", "toolchain", "source", "footprint")]
    for _ in range(data.draw(st.integers(1, 2))):
        where = data.draw(st.sampled_from(serving))
        holder = manifest
        try:
            for step in where[:-1]:
                holder = holder[step]
            if data.draw(st.booleans()):
                holder[where[-1]] = data.draw(JSON)
            else:
                del holder[where[-1]]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took it away
    try:
        (bundle / MANIFEST).write_text(json.dumps(manifest))
        engine = ReportEngine.open(bundle, threads=1, max_sequence=64, options=EngineOptions(1, 0, 0))
    except NotPossibleHere as refused:
        assert "\n" not in str(refused) and str(bundle) in str(refused)
    except InvalidInput as refused:  # a bundle may say that its context is one token
        assert str(refused).startswith("--max-sequence 64 is more than the bundle's context")
    else:
        engine.close()
    finally:
        (bundle / MANIFEST).write_bytes(whole)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_garbled_text_is_understood_or_refused_in_one_sentence(bundle: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(TEXTS))
    whole = (bundle / name).read_bytes()
    garbled = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(garbled)))
        garbled[start : start + data.draw(st.integers(0, 6))] = data.draw(
            st.one_of(st.binary(max_size=6), st.text('{}[]()":,%0189ae \\-', max_size=6).map(str.encode))
        )
    described = (bundle / MANIFEST).read_bytes()
    try:
        (bundle / name).write_bytes(garbled)
        if name != MANIFEST:
            describe_again(bundle, name)
        PromptBuilder.from_bundle(Bundle(bundle)).build("Why?", [(1, 4, 4)])
    except NotPossibleHere as refused:
        assert "\n" not in str(refused) and str(bundle) in str(refused)
    finally:
        (bundle / name).write_bytes(whole)
        (bundle / MANIFEST).write_bytes(described)
