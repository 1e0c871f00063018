"""Kernels compiled for real devices without a GPU: what fails the build, the archive's contents, the command's output."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from echovlm_edge.plugins.dual_path_moe.cuda import aot
from echovlm_edge.plugins.dual_path_moe.cuda.archive import Record, read_archive, write_archive
from echovlm_edge.plugins.dual_path_moe.cuda.resources import Resources, parse, weight_lines

compiles = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="the kernels' compiler is not installed: pip install echovlm-edge[cuda-kernels]",
)
RECORD = Record("down_decode", "down_decode", 87, 0, 4, 128, 64, 16, 64, 64, 4, 12288, 68, 14)

# In a process of its own: Triton compiles or interprets, as its first import decides.
COMPILE = """
import json, sys
from dataclasses import asdict
from echovlm_edge.plugins.dual_path_moe.cuda.compile import KernelRefused, compile_variant
from echovlm_edge.plugins.dual_path_moe.cuda.variants import Variant
for arguments, sm in json.loads(sys.argv[1]):
    try:
        record, cubin, used = compile_variant(Variant(*arguments), sm)
        print(json.dumps({"record": asdict(record), "magic": cubin[:4].hex(), "used": asdict(used)}))
    except KernelRefused as refused:
        print(json.dumps({"refused": str(refused)}))
"""


def compiled(*variants: tuple[list[object], int]) -> list[dict]:
    command = [sys.executable, "-c", COMPILE, json.dumps(variants)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    return [json.loads(line) for line in output.splitlines()]


@compiles
def test_decode_kernels_stream_16_bytes_a_thread_and_do_not_spill() -> None:
    decode = [["gate_up_decode", 0, 4, 128, 16, 64, 64, 4, 4], ["down_decode", 1, 4, 64, 16, 64, 64, 4, 4]]
    for kernel in compiled(*((arguments, sm) for arguments in decode for sm in (87,))):
        used = kernel["used"]
        assert used["weight_load_bytes"] == 16 and used["weight_loads"] > 0
        assert used["spills"] == used["stack_bytes"] == 0
        assert used["tensor_core_products"] > 0
        assert 0 < used["registers"] <= 255
        assert kernel["magic"] == b"\x7fELF".hex()
        assert kernel["record"]["shared_bytes"] == used["shared_bytes"] > 0


@compiles
def test_a_kernel_that_loads_narrowly_or_spills_is_refused() -> None:
    narrow, spilling = compiled(
        (
            ["gate_up_decode", 0, 4, 64, 16, 16, 64, 4, 4],
            87,
        ),  # 16 rows of gate and 16 of up, 32 bytes each, for 128 threads
        (["gate_up_prefill", 0, 4, 64, 128, 64, 64, 4, 3], 87),  # twice as many sums as there are registers
    )
    assert "loads weights by 8 bytes, not 16" in narrow["refused"]
    assert "spills registers" in spilling["refused"]


def test_loads_are_told_apart_by_the_line_they_come_from() -> None:
    source = "def load_tile(pointers):\n    return tl.load(pointers)\nx = tl.load(x)\ny = load_tile(p)\n"
    assert weight_lines(source) == {1, 2, 4}
    disassembly = """
\t//## File "/a/weights.py", line 4 inlined at "/a/down.py", line 3
\t//## File "/a/down.py", line 3
        /*0010*/                   LDGSTS.E.BYPASS.128 [R1], [R2.64], P0 ;
        /*0020*/              @!P0 LDG.E.64 R4, [R2.64] ;
\t//## File "/a/weights.py", line 3 inlined at "/a/down.py", line 3
        /*0030*/                   LDG.E.U16 R4, [R2.64] ;
\t//## File "/a/down.py", line 4
        /*0040*/                   LDG.E R4, [R2.64] ;
        /*0050*/                   STL [R1], R2 ;
        /*0060*/                   HMMA.16816.F32 R1, R2, R3, R1 ;
        /*0070*/              @!UP0 UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8], UPT ;
        /*0080*/                   HGMMA.64x16x16.F32 R24, R20, gdesc[UR4], R24 ;
"""
    used = parse(disassembly, registers=40, stack_bytes=8, shared_bytes=0, weight_lines=weight_lines(source))
    assert used == Resources(40, 8, 1, 0, tensor_core_products=3, weight_loads=2, weight_load_bytes=8)


@pytest.mark.parametrize(
    ("used", "complaint"),
    [
        (Resources(255, 0, 3, 0, 8, 4, 16), "spills"),
        (Resources(255, 16, 0, 0, 8, 4, 16), "spills"),
        (Resources(64, 0, 0, 100 * 1024, 8, 4, 16), "shared memory"),
        (Resources(64, 0, 0, 0, 0, 4, 16), "tensor cores"),
        (Resources(64, 0, 0, 0, 8, 0, 0), "no weights"),
        (Resources(64, 0, 0, 0, 8, 4, 4), "by 4 bytes"),
    ],
)
def test_what_must_not_be_shipped(used: Resources, complaint: str) -> None:
    (found,) = used.complaints(86, weights=True)
    assert complaint in found
    assert Resources(64, 0, 0, 99 * 1024, 8, 4, 16).complaints(86, weights=True) == []


def test_an_archive_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "kernels.cubins"
    entries = [(RECORD, b"\x7fELF" + bytes(range(77))), (RECORD, b"\x7fELFxx")]
    write_archive(path, entries, b"h" * 32)
    assert read_archive(path) == entries
    data = path.read_bytes()
    assert data[:8] == b"ECHOCUBN" and data[32:64] == b"h" * 32
    offset = int.from_bytes(data[64 + 144 : 64 + 152], "little")
    assert offset % 64 == 0 and data[offset : offset + 4] == b"\x7fELF"
    assert data[64 : 64 + 12] == b"down_decode\0" and int.from_bytes(data[64 + 96 : 64 + 100], "little") == 87
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("cut", "reason"), [(10, "not an archive"), (-1, "cut short")])
def test_a_damaged_archive_is_refused(tmp_path: Path, cut: int, reason: str) -> None:
    path = tmp_path / "kernels.cubins"
    write_archive(path, [(RECORD, b"\x7fELF")], bytes(32))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=reason):
        read_archive(path)


@compiles
def test_a_missing_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert aot.main(["--output", str(tmp_path / "no" / "kernels.cubins")]) == 2
    assert f"{tmp_path / 'no'} is not a folder" in capsys.readouterr().err


def test_without_triton_the_command_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert aot.main(["--output", str(tmp_path / "kernels.cubins")]) == 2
    assert "install echovlm-edge[cuda-kernels]" in capsys.readouterr().err
