"""A bundle's signature: minisign and we read each other's, and whatever is changed is refused in one sentence that names it."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from echovlm_edge.runtime.bundle import command
from echovlm_edge.runtime.bundle.installed import SIGNATURE
from echovlm_edge.runtime.bundle.manifest import MANIFEST, Bundle
from echovlm_edge.runtime.bundle.signature import PublicKey, SecretKey, check_signature, sign_file
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.doctor import command as doctor
from echovlm_edge.runtime.evaluation import command as evaluate
from echovlm_edge.runtime.profiling import command as profile
from echovlm_edge.runtime.serving.supervision.serve_settings import (
    as_environment,
    as_toml,
    read_settings,
    settings_of,
    with_absolute_paths,
)
from tests.support.evaluation_data import mixed_row, write_rows
from tests.support.signing import Keys, new_keys

needs_minisign = pytest.mark.skipif(shutil.which("minisign") is None, reason="this machine has no minisign")


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return new_keys(tmp_path)


@pytest.fixture
def signed(golden_bundle: Path, tmp_path: Path, keys: Keys) -> Path:
    bundle = Path(shutil.copytree(golden_bundle, tmp_path / "bundle"))
    assert command.main(["sign", str(bundle), "--key", str(keys.secret)]) == 0
    return bundle


def opened(bundle: Path, *keys: Keys) -> Bundle:
    return Bundle(bundle, signers=[PublicKey.read(one.public) for one in keys])


def refused(bundle: Path, *keys: Keys) -> str:
    with pytest.raises(NotPossibleHere) as refusal:
        opened(bundle, *keys)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_signed_bundle_is_opened_by_any_of_the_keys(signed: Path, keys: Keys, tmp_path: Path) -> None:
    assert opened(signed, new_keys(tmp_path, "other"), keys).manifest == Bundle(signed).manifest


def test_an_unsigned_bundle_is_refused(signed: Path, keys: Keys) -> None:
    (signed / SIGNATURE).unlink()
    assert f"{signed / MANIFEST} is not signed" in refused(signed, keys)


def test_a_foreign_signature_is_refused(signed: Path, keys: Keys, tmp_path: Path) -> None:
    other = new_keys(tmp_path, "other")
    assert f"which is none of {other.public}" in refused(signed, other)
    forged = PublicKey.read(other.public)
    with pytest.raises(
        NotPossibleHere, match="has changed since it was signed"
    ):  # another key that claims the same number
        number = PublicKey.read(keys.public).number
        Bundle(signed, signers=[PublicKey(number, forged.key, forged.file)])


def all_files(bundle: Path) -> list[str]:
    return [MANIFEST, *(file.name for file in Bundle(bundle).manifest.all_files())]


def test_one_changed_byte_in_any_file_is_refused(signed: Path, keys: Keys) -> None:
    for name in all_files(signed):
        whole = (signed / name).read_bytes()
        place = len(whole) // 2
        (signed / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        sentence = refused(signed, keys)
        assert str(signed / name) in sentence and "has changed since it was" in sentence
        (signed / name).write_bytes(whole)
    opened(signed, keys)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_garbled_signature_is_refused(signed: Path, keys: Keys, data: st.DataObject) -> None:
    whole = (signed / SIGNATURE).read_bytes()
    second = whole.index(b"\n") + 1  # the first line is a comment that nothing signs
    place = data.draw(st.integers(second, len(whole) - 2))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))
    garbled = data.draw(st.sampled_from([whole[:place], whole[:place] + bytes([byte]) + whole[place + 1 :]]))
    try:
        (signed / SIGNATURE).write_bytes(garbled)
        refused(signed, keys)
    finally:
        (signed / SIGNATURE).write_bytes(whole)


def test_a_truncated_manifest_is_refused_with_and_without_keys(signed: Path, keys: Keys) -> None:
    whole = (signed / MANIFEST).read_bytes()
    (signed / MANIFEST).write_bytes(whole[: len(whole) // 2])
    assert "has changed since it was signed" in refused(signed, keys)
    with pytest.raises(NotPossibleHere, match="is damaged"):
        Bundle(signed)


def test_what_is_no_key_is_refused(tmp_path: Path, keys: Keys) -> None:
    for content in ("", "untrusted comment: x\n", keys.secret.read_text(), "a\nb\nc"):
        (tmp_path / "no.pub").write_text(content)
        with pytest.raises(NotPossibleHere, match=r"no.pub is no public key"):
            PublicKey.read(tmp_path / "no.pub")
    with pytest.raises(NotPossibleHere, match="is no secret key"):
        SecretKey.read(keys.public)
    with pytest.raises(NotPossibleHere, match="cannot be read"):
        SecretKey.read(tmp_path / "nothing")
    assert "seed" not in repr(SecretKey.read(keys.secret))


def test_a_secret_key_with_a_password_says_how_to_sign(tmp_path: Path, keys: Keys) -> None:
    comment, encoded = keys.secret.read_text().splitlines()
    content = base64.b64decode(encoded)
    encrypted = base64.b64encode(content[:2] + b"Sc" + content[4:]).decode()  # scrypt, which -W leaves out
    keys.secret.write_text(f"{comment}\n{encrypted}\n")
    with pytest.raises(
        NotPossibleHere, match=r"has a password: sign with minisign -S -s .*vendor.key -m BUNDLE/bundle.json"
    ):
        SecretKey.read(keys.secret)


def test_a_build_signs_its_bundle(build_bundle: object, tmp_path: Path, keys: Keys) -> None:
    bundle = build_bundle(sign=keys.secret)  # type: ignore[operator]
    opened(bundle, keys)


def test_the_doctor_examines_the_signature(
    signed: Path, keys: Keys, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--bundle", str(signed), "--json", "--require-signature"]
    doctor.main([*asked, str(new_keys(tmp_path, "other").public)])
    report = json.loads(capsys.readouterr().out)
    assert report["bundles"][0]["level"] == "wrong" and "is signed by the key" in report["bundles"][0]["what"]
    doctor.main([*asked, str(keys.public)])
    report = json.loads(capsys.readouterr().out)
    assert report["bundles"][0]["level"] != "wrong" and report["verified"] is True


@pytest.mark.parametrize("name", ("profile", "evaluate"))
def test_a_command_that_loads_a_bundle_asks_for_its_signature(
    name: str, signed: Path, keys: Keys, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = write_rows(tmp_path, [mixed_row(1)]), tmp_path / "output"
    main, *given = {
        "profile": (profile.main, "--runs", 1, "--warmups", 0, "--new-tokens", 2, "--frames", 0, "--quick"),
        "evaluate": (
            evaluate.main,
            "run",
            "--data",
            data,
            "--images",
            tmp_path,
            "--output",
            output,
            "--max-new-tokens",
            2,
        ),
    }[name]
    asked = [str(word) for word in (*given, "--bundle", signed, "--require-signature")]
    other = new_keys(tmp_path, "other").public
    assert main([*asked, str(other)]) == 2 and f"{signed / MANIFEST} is signed by the key" in capsys.readouterr().err
    assert main([*asked, str(other), str(keys.public)]) == 0
    with_server = [
        *(word for word in asked if word not in ("--bundle", str(signed))),
        str(other),
        "--server",
        "127.0.0.1:1",
    ]
    assert main(with_server) == 2 and "give it to the server" in capsys.readouterr().err


def test_keys_are_named_in_every_form_of_the_options(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = read_settings(
        ["--bundle", "b", "--require-signature", keys.public.name, "--require-signature", "other.pub"]
    )
    assert typed and typed.require_signature == (Path(keys.public.name), Path("other.pub"))
    (tmp_path / "serve.toml").write_text(as_toml(typed))
    assert settings_of(tmp_path / "serve.toml", {}) == typed
    absolute = with_absolute_paths(typed)
    assert absolute.require_signature == (keys.public, tmp_path / "other.pub")
    for name, value in as_environment(absolute).items():
        monkeypatch.setenv(name, value)
    assert settings_of(None, {}).require_signature == absolute.require_signature


@needs_minisign
def test_minisign_checks_what_we_sign(signed: Path, keys: Keys) -> None:
    check = ["minisign", "-V", "-p", str(keys.public), "-m", str(signed / MANIFEST)]
    assert "Signature and comment signature verified" in subprocess.check_output(check, text=True)
    manifest = json.loads((signed / MANIFEST).read_text())
    (signed / MANIFEST).write_text(json.dumps(manifest | {"precision": "int4"}))
    assert subprocess.run(check, capture_output=True, check=False).returncode != 0


@needs_minisign
def test_we_check_what_minisign_signs(tmp_path: Path) -> None:
    keys, file = Keys(tmp_path / "their.pub", tmp_path / "their.key"), tmp_path / MANIFEST
    file.write_text("{}")
    run: dict[str, Any] = {"capture_output": True, "check": True}
    subprocess.run(["minisign", "-G", "-W", "-p", keys.public, "-s", keys.secret], **run)
    subprocess.run(["minisign", "-S", "-s", keys.secret, "-m", file], **run)
    check_signature(file.read_bytes(), file, [PublicKey.read(keys.public)])
    sign_file(file, SecretKey.read(keys.secret))
    subprocess.run(["minisign", "-V", "-p", keys.public, "-m", file], **run)
