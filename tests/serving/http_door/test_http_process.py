"""`echovlm-serve --http` as a process: it says where it serves, logs nothing of a request, and ends with what runs; the page's examples."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest

from echovlm_edge.runtime.serving.supervision.serve_command import main as serve
from tests.support.dicom_files import png, saved, ultrasound
from tests.support.http_door import data_uri, pictured
from tests.support.server_process import server_process

ROOT = Path(__file__).parents[3]
SECRET = "Patient Doe has pain"


def test_it_serves_and_ends_with_what_runs(golden_bundle: Path, tmp_path: Path) -> None:
    with server_process(golden_bundle, tmp_path, "--http", "127.0.0.1:0", "--log", "json", "--grace", "30") as server:
        server.wait_for("HTTP on ")
        (address,) = re.findall(r"^HTTP on (\S+)$", server.output, re.MULTILINE)
        with httpx.Client(base_url=f"http://{address}", timeout=60) as client:
            model = client.get("/v1/models").json()["data"][0]["id"]
            asked = {"model": model, "messages": [{"role": "user", "content": pictured(SECRET, data_uri(png(84, 56)))}]}
            assert client.post("/v1/chat/completions", json=asked | {"max_tokens": 4}).status_code == 200
            wrong = asked | {"messages": [{"role": "user", "content": pictured(SECRET, data_uri(SECRET.encode()))}]}
            assert client.post("/v1/chat/completions", json=wrong).status_code == 400
            client.get(f"/v1/models?token={SECRET}")
            client.get(f"/{SECRET}")
            with client.stream(
                "POST", "/v1/chat/completions", json=asked | {"stream": True, "max_tokens": 60}
            ) as stream:
                lines = stream.iter_lines()
                next(lines)
                stopping = threading.Thread(target=server.stop)
                stopping.start()
                assert [line for line in lines if line][-1] == "data: [DONE]"
            stopping.join()
        calls = [json.loads(line) for line in server.log if '"message": "call"' in line]
        assert [call["outcome"] for call in calls if call["method"] == "AnswerQuestion"] == [
            "ok",
            "invalid_argument",
            "ok",
        ]
        assert {call["door"] for call in calls} == {"http"}
        assert SECRET not in server.said and "Doe" not in server.said and "uvicorn" not in server.said


def test_an_address_that_others_reach_needs_what_grpc_s_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for listen in ("0.0.0.0:8080", "somewhere"):
        assert serve(["--bundle", str(tmp_path), "--http", listen]) == 2
        assert listen in capsys.readouterr().err


@pytest.mark.parametrize("library", ["uvicorn", "starlette", "python_multipart"])
def test_a_missing_library_is_named_before_a_bundle_is_loaded(tmp_path: Path, library: str) -> None:
    program = (
        f"import sys; sys.modules[{library!r}] = None; "
        "from echovlm_edge.runtime.serving.supervision.serve_command import main; sys.exit(main(sys.argv[1:]))"
    )
    asked = [sys.executable, "-c", program, "--bundle", str(tmp_path / "none"), "--http", "127.0.0.1:0"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"--http needs {library}" in done.stderr and "[http]" in done.stderr


def test_the_page_s_python_runs(
    golden_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(  # each goes on from those before
        r"^```python\n(.*?)^```", (ROOT / "docs/http.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study").mkdir()
    (tmp_path / "study/study-000023-3.dcm").write_bytes(
        saved(ultrasound(np.full((60, 80), 90, np.uint8), "MONOCHROME2"))
    )
    with server_process(golden_bundle, tmp_path, "--http", "127.0.0.1:0") as server:
        server.wait_for("HTTP on ")
        (address,) = re.findall(r"^HTTP on (\S+)$", server.output, re.MULTILINE)
        exec(compile("\n".join(blocks).replace("127.0.0.1:8080", address), "http.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "Draft, not reviewed by a clinician." in printed and "'text': 'A', 'log_probability': -" in printed
