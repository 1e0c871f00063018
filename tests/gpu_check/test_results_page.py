"""The results of a check: one JSON that is read back whole, and a page with what a reader needs to judge them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.gpu_check import figures as f
from benchmarks.gpu_check.checks.golden_tokens import compare
from benchmarks.gpu_check.gpu_kernels import short
from benchmarks.gpu_check.greedy import Written
from benchmarks.gpu_check.page import page, print_results
from echovlm_edge.runtime.contracts.errors import InvalidInput

NEAR = f.Divergence("study 27, en", 5, 11, 12, 0.03)
CASE = f.TokenCase("demo int4", "PyTorch", True, 8, 48, 16.0, 0.02, (NEAR,))
RESULTS = f.Results(
    created="2026-11-29T00:00:00+00:00",
    commit="abc1234",
    stages=(
        f.StageEnd("machine", "done", 3.0),
        f.StageEnd("eager", "left out", 0.5, "torch cannot be imported here."),
    ),
    machine=f.MachineFigures(
        *("NVIDIA H200", 90, "580.1", "13.0", 143.8, 700.0, 1980, True, "a CPU", 16, {"numpy": "2.4"}),
        f.Bandwidth(4300.0, 4000.0),
    ),
    tests=f.TestFigures(
        (
            f.DeviceTest("test_a", "passed", 1.0),
            f.DeviceTest("test_b", "failed", 1.0, "off by one"),
            f.DeviceTest("test_c", "skipped", 0.0, "no TensorRT"),
            f.DeviceTest("test_d", "skipped", 0.0, "no TensorRT"),
        ),
        ("test_a: 87 us",),
    ),
    tokens=f.TokenFigures((CASE,)),
    reuse=f.ReuseFigures((f.ReuseCase("golden fp16", "a question", 237, 29, 37, 0.1, 0.4, None),)),
    published=f.PublishedFigures(
        *(28, "int4", True, 7.5, 60.0, 9.0, 11.0),
        bandwidth=f.Bandwidth(4200.0, 4000.0),
        first_tokens=(f.FirstToken("W7", 2737, 2797, 0.5, {"vision": 0.2, "prefill": 0.25, "queue": 0.0}),),
        decoding=(f.Decoding(4, 600, 100, 0.01, 8e9, 500.0),),
        drafted=(f.DraftedStep(1, 0.008), f.DraftedStep(4, 0.011)),
        operators=(f.OperatorTime("decode", "MatMulNBits", 170.0, 1.25, "GPU"),),
    ),
    eager=f.EagerFigures("2.13.0+cu130", 28, 0.1, 451, 0.2, (f.EagerSteps(4, 0.04),), 4, 0.004, None, "it failed"),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    f.write_results(tmp_path / "results.json", RESULTS)
    assert f.read_results(tmp_path / "results.json") == RESULTS


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("no JSON", "no file of make gpu-check's results"),
        ("[]", "no file of make gpu-check's results"),
        (json.dumps({"schema": "echovlm-gpu-check", "version": 99}), "has version 99, this program reads 1"),
        (json.dumps({"schema": "echovlm-gpu-check", "version": 1, "surplus": 1}), "no file of make gpu-check's"),
        (None, "cannot be read"),
    ],
)
def test_another_file_is_one_sentence(tmp_path: Path, content: str | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(InvalidInput, match=sentence):
        f.read_results(tmp_path / "results.json")


def test_the_page_says_what_was_seen() -> None:
    text = page(RESULTS)
    for said in (
        "### NVIDIA H200 (SM 90), 2026-11-29, commit abc1234",
        "| eager | left out | 0 | torch cannot be imported here. |",
        "read 4,000 GB/s, copied 4,300 GB/s",
        "| passed | 1 |",
        "- failed: test_b: off by one",
        "- skipped, 2: no TensorRT",
        "- test_a: 87 us",
        "| demo int4, our kernels | 8 | 48 | 2.0e-02 of 16 | 1 | near ties |",
        "token 5 is 12 instead of 11, whose logit is 3.0e-02 larger; the bound is 4.0e-02",
        "| golden fp16: a question | 237 | 29 | 37 | 4.0x | the same |",
        "| W7 | 2737 | 2797 | 500.0 | prefill 250.0, vision 200.0, queue 0.0 |",
        # 4 sequences in 10 ms: 400 tokens/s; 800 of 4,000 GB/s; 500 W / 400; eager's step takes 40 ms
        "| 4 | 600 | 10.00 | 400.0 | 20% | 500 | 1.25 | 4.0x |",
        "| decode | GPU | MatMulNBits | 170 | 1.250 |",
        "PyTorch 2.13.0+cu130 eager, bfloat16, 28 layers",
        "- it failed",
    ):
        assert said in text
    assert "| 4 | 11.00 | 1.38x | 12% |" in text  # a draft of three tokens pays if more than 0.375 of them are right
    assert "rehearsal" not in text
    assert page(replace(RESULTS, rehearsal=True)).count("A rehearsal without a GPU") == 1


def test_a_terminal_shows_the_same_tables(capsys: pytest.CaptureFixture[str]) -> None:
    print_results(RESULTS, Console(width=100))
    said = " ".join(capsys.readouterr().out.split())
    for part in ("near ties", "400.0", "torch cannot be imported here."):
        assert part in said


def test_eager_of_fewer_layers_is_not_compared() -> None:
    assert RESULTS.eager
    text = page(replace(RESULTS, eager=replace(RESULTS.eager, layers=14)))
    assert "| 4 | 600 | 10.00 | 400.0 | 20% | 500 | 1.25 |  |" in text


def test_a_check_that_stopped_early_is_a_page_too() -> None:
    assert "an unknown GPU" in page(f.Results(stages=(f.StageEnd("machine", "failed", 1.0, "No GPU."),)))


@pytest.mark.parametrize(("margin", "error", "good"), [(0.03, 0.02, True), (0.05, 0.02, False), (0.0, 0.5, False)])
def test_a_divergence_is_excused_within_the_measured_error_alone(margin: float, error: float, good: bool) -> None:
    """And no error excuses itself: logits that are far from the reference's are wrong."""
    case = replace(CASE, largest_error=error, divergences=(replace(NEAR, margin=margin),))
    assert case.good is good


def test_texts_are_compared_up_to_their_first_divergence() -> None:
    import numpy as np

    theirs = np.array([[0, 1, 5], [4, 0, 3.9], [9, 0, 0], [1, 2, 3]], np.float32)
    ours = theirs.copy()
    ours[1] = [3.9, 0, 3.95]  # another token: what comes after has another input
    ours[2:] = 100
    case = compare("b", "r", False, 2, ["x", "y"], [Written((2, 2, 0, 0), ours), Written((2, 0, 0, 2), theirs)],
                   [Written((2, 0, 0, 2), theirs)] * 2)  # fmt: skip
    (divergence,) = case.divergences
    assert (divergence.sequence, divergence.step, divergence.expected, divergence.written) == ("x", 1, 0, 2)
    assert divergence.margin == pytest.approx(0.1) and case.largest_error == pytest.approx(0.1)
    assert case.tokens == 2 + 4 and case.largest_logit == 9 and case.bound == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("void onnxruntime::cuda::MatMulFloatInt4Kernel<__half, 128, true>(__half*, int)", "MatMulFloatInt4Kernel"),
        ("void cutlass::Kernel2<cutlass_80_tensorop::Gemm<(int)4> >(Params)", "Kernel2"),
        ("gate_up_decode", "gate_up_decode"),
        ("Memcpy DtoH (Device -> Pinned)", "DtoH"),
    ],
)
def test_a_kernels_name_is_that_of_its_function(kernel: str, name: str) -> None:
    assert short(kernel) == name
