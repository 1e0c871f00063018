"""What comes in: every transfer syntax, once or twice, whole or not, from whom it may."""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filereader import read_file_meta_info
from pydicom.filewriter import dcmwrite, write_file_meta_info
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)
from pynetdicom import AE

from echovlm_edge.runtime.dicom_node.node import Node
from echovlm_edge.runtime.dicom_node.receiving import receiver
from echovlm_edge.runtime.formats.dicom_syntaxes import EVERY
from tests.support.carts import cine, pixels, running_node, still, store, study_of, write
from tests.support.dicom_files import ultrasound
from tests.support.waiting import wait_for

NOWHERE = "127.0.0.1:9"  # no server: nothing is asked of it in these tests
dcmtk = pytest.mark.skipif(not shutil.which("storescu"), reason="needs the Debian package dcmtk")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with running_node(tmp_path / "spool", NOWHERE, destination=(f"{tmp_path}/out",), quiet_seconds=60) as running_one:
        yield running_one


def held(node: Node) -> list[pydicom.Dataset]:
    """All instances in the spool, read."""
    return [pydicom.dcmread(path) for path in node.spool.arrivals.instances.iterdir()]


@dcmtk
def test_a_cart_finds_the_node(node: Node) -> None:
    host, _, port = node.address.rpartition(":")
    assert subprocess.run(["echoscu", "-aec", "ECHOVLM", host, port], check=False).returncode == 0
    assert subprocess.run(["echoscu", "-aec", "OTHER", host, port], check=False, capture_output=True).returncode != 0


def in_syntax(syntax: UID, folder: Path) -> Path:
    """Write a still in a transfer syntax; of a codestream there is only a stub, as the node reads none."""
    instance = still(study_of(), 1)
    if syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian):
        instance = ultrasound(pixels(1), "MONOCHROME2", syntax, **study_of())
    elif syntax not in (ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian):
        instance.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
        instance["PixelData"].VR, instance["PixelData"].is_undefined_length = "OB", True
    instance.file_meta.TransferSyntaxUID = syntax
    path = folder / f"{syntax}.dcm"
    with path.open("wb") as file:
        file.write(bytes(128) + b"DICM")
        write_file_meta_info(file, instance.file_meta)  # type: ignore[arg-type]  # it writes to any file
        body = io.BytesIO()
        dcmwrite(
            body,
            Dataset(instance),
            implicit_vr=syntax == ImplicitVRLittleEndian,
            little_endian=syntax != ExplicitVRBigEndian,
        )
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        deflated = syntax == DeflatedExplicitVRLittleEndian
        file.write(packer.compress(body.getvalue()) + packer.flush() if deflated else body.getvalue())
    return path


@pytest.mark.parametrize("syntax", EVERY)
def test_every_transfer_syntax_of_the_decoder_is_taken_as_it_comes(syntax: UID, node: Node, tmp_path: Path) -> None:
    path = in_syntax(syntax, tmp_path)
    assert store(node, [path]) == {}
    (file,) = node.spool.arrivals.instances.iterdir()
    assert read_file_meta_info(file).TransferSyntaxUID == syntax
    assert data_set(file) == data_set(path)


def data_set(path: Path) -> bytes:
    """The bytes behind a file's meta information."""
    content = path.read_bytes()
    return content[144 + int.from_bytes(content[140:144], "little") :]


def _padded(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)


@dcmtk
@pytest.mark.parametrize("option", ["-xe", "-xi", "-xb", "-xd"])
def test_storescu_sends_in_its_transfer_syntaxes(option: str, node: Node, tmp_path: Path) -> None:
    files = write(tmp_path / "in", still(study_of(), 1), cine(study_of(), 2))
    host, _, port = node.address.rpartition(":")
    command = ["storescu", option, "-aec", "ECHOVLM", host, port, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(held(node)) == 2
    assert (
        held(node)[0].pixel_array.reshape(-1, 64, 64)[0] == pixels(1 if "NumberOfFrames" not in held(node)[0] else 2)
    ).all()


@dcmtk
@pytest.mark.parametrize(
    ("tool", "option"), [("dcmcjpeg", "+eb"), ("dcmcjpeg", "+e1"), ("dcmcjpls", "+el"), ("dcmcrle", "")]
)
def test_storescu_sends_what_dcmtk_compressed(tool: str, option: str, node: Node, tmp_path: Path) -> None:
    (plain,) = write(tmp_path / "in", still(study_of(), 1))
    packed = tmp_path / "packed.dcm"
    subprocess.run([tool, *option.split(), plain, packed], check=True)
    proposed = {"+eb": "-xy", "+e1": "-xs", "+el": "-xt", "": "-xr"}[option]
    host, _, port = node.address.rpartition(":")
    subprocess.run(["storescu", proposed, "-aec", "ECHOVLM", host, port, packed], check=True)
    (one,) = held(node)
    assert one.file_meta.TransferSyntaxUID == pydicom.dcmread(packed).file_meta.TransferSyntaxUID
    assert one.PixelData == pydicom.dcmread(packed).PixelData


def test_the_same_instance_twice_is_one(node: Node, tmp_path: Path) -> None:
    files = write(tmp_path / "in", still(study_of(), 1))
    assert store(node, files) == store(node, files) == {}
    assert len(held(node)) == 1


def test_two_carts_with_one_ae_title_send_at_once(node: Node, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    sets = [write(tmp_path / str(cart), *(still(study_of(), seed) for seed in range(5))) for cart in range(2)]
    with ThreadPoolExecutor() as carts:
        assert list(carts.map(lambda files: store(node, files), sets)) == [{}, {}]
    assert len(held(node)) == 10


def test_a_sender_above_its_rate_waits_for_its_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(receiver, "time", SimpleNamespace(monotonic=lambda: 100.0, sleep=pauses.append))
    files = write(tmp_path / "in", *(still(study_of(), seed) for seed in range(8)))
    with running_node(tmp_path / "spool", NOWHERE, destination=(f"{tmp_path}/out",), max_rate=4) as node:
        assert store(node, files) == {}
        assert [round(pause, 2) for pause in pauses] == [0.25, 0.5, 0.75, 1.0]  # after four within a second
        store(node, files[:1], title="OTHER")
        assert len(pauses) == 4


def test_an_instance_larger_than_allowed_is_refused(tmp_path: Path) -> None:
    big = ultrasound(np.zeros((1100, 1000), np.uint8), "MONOCHROME2", **study_of())
    files = write(tmp_path / "in", big, still(study_of(), 1))
    with running_node(tmp_path / "spool", NOWHERE, destination=(f"{tmp_path}/out",), max_instance_mb=1) as node:
        assert store(node, files) == {files[0]: 0xA700}
        assert len(held(node)) == 1 and not list(node.spool.arrivals.incoming.iterdir())


def test_a_full_spool_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    sizes = [ultrasound(np.zeros((700, 1000), np.uint8), "MONOCHROME2", **study_of()) for _ in range(2)]
    files = write(tmp_path / "in", *sizes)
    with running_node(tmp_path / "spool", NOWHERE, destination=(f"{tmp_path}/out",), spool_mb=1) as node:
        assert store(node, files) == {files[1]: 0xA700}
        assert len(held(node)) == 1


def test_a_disk_without_a_reserve_refuses(tmp_path: Path) -> None:
    files = write(tmp_path / "in", still(study_of(), 1))
    with running_node(tmp_path / "spool", NOWHERE, destination=(f"{tmp_path}/out",), reserve_mb=1 << 30) as node:
        assert store(node, files) == {files[0]: 0xA700}
        assert not held(node)


def test_what_is_no_picture_is_refused_or_kept_as_configured(tmp_path: Path) -> None:
    report = still(study_of(), 1)
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    del report.PixelData
    files = write(tmp_path / "in", report)
    for choice, refused in (("refuse", {files[0]: 0x0122}), ("keep", {})):
        spool, out = tmp_path / choice, (f"{tmp_path}/out",)
        with running_node(spool, NOWHERE, destination=out, other_classes=choice, quiet_seconds=60) as node:
            if refused:
                files_and_picture = [*files, *write(tmp_path / "in", still(study_of(), 2))]
                assert store(node, files_and_picture) == refused
            else:
                assert store(node, files) == refused
            assert len(held(node)) == 1


@pytest.mark.parametrize("damage", ["cut", "no study", "wrong uid", "other instance", "no image"])
def test_a_damaged_data_set_is_refused_and_leaves_nothing(damage: str, node: Node, tmp_path: Path) -> None:
    instance = still(study_of(), 1)
    if damage == "no study":
        del instance.StudyInstanceUID
    if damage == "wrong uid":
        instance.StudyInstanceUID = "../../etc"
    (path,) = write(tmp_path / "in", instance)
    if damage == "cut":
        content = path.read_bytes()
        start = content.index(b"\x08\x00\x20\x00DA")
        path.write_bytes(content[: start + 10])
    if damage in ("other instance", "no image"):
        if damage == "no image":
            instance.SOPClassUID = CTImageStorage
        else:
            instance.SOPInstanceUID = generate_uid()
        uid = instance.file_meta.MediaStorageSOPInstanceUID
        pydicom.dcmwrite(path, instance)
        assert pydicom.dcmread(path).file_meta.MediaStorageSOPInstanceUID == uid
    expected = 0xA900 if damage in ("other instance", "no image") else 0xC000
    assert store(node, [path]) == {path: expected}
    assert not held(node) and not list(node.spool.arrivals.incoming.iterdir())


def test_a_deflated_bomb_is_inflated_no_further_than_its_header(node: Node, tmp_path: Path) -> None:
    (path,) = write(tmp_path / "in", still(study_of(), 1))
    content = path.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    deflated = packer.compress(content[start:])
    for _ in range(300):
        deflated += packer.compress(bytes(1 << 20))
    deflated += packer.flush()
    syntax = DeflatedExplicitVRLittleEndian
    old = b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\0"
    meta = content[:start].replace(
        old, b"\x02\x00\x10\x00UI" + len(_padded(syntax)).to_bytes(2, "little") + _padded(syntax)
    )
    length = int.from_bytes(meta[140:144], "little") + len(meta) - start
    path.write_bytes(meta[:140] + length.to_bytes(4, "little") + meta[144:] + deflated)
    assert store(node, [path]) == {}
    (file,) = node.spool.arrivals.instances.iterdir()
    assert file.stat().st_size < 1 << 20


def test_an_association_aborted_in_the_middle_leaves_no_file(node: Node, tmp_path: Path) -> None:
    big = ultrasound(np.zeros((2000, 2000), np.uint8), "MONOCHROME2", **study_of())
    entity = AE("CART")
    entity.add_requested_context(big.SOPClassUID, big.file_meta.TransferSyntaxUID)
    host, _, port = node.address.rpartition(":")
    association = entity.associate(host, int(port), ae_title="ECHOVLM")
    sent = 0
    plain = association.dul.socket.socket
    assert plain
    whole = plain.send

    class Cut:
        """The connection's socket, which ends in the middle."""

        def __getattr__(self, name: str) -> object:
            return getattr(plain, name)

        def send(self, data: bytes) -> int:
            nonlocal sent
            sent += len(data)
            if sent > 1_000_000:
                plain.shutdown(socket.SHUT_RDWR)
                raise OSError
            return whole(data)

    association.dul.socket.socket = Cut()  # type: ignore[assignment]
    association.send_c_store(big)
    wait_for(lambda: not list(node.spool.arrivals.incoming.iterdir()))
    assert not held(node)
    assert store(node, write(tmp_path / "in", still(study_of(), 1))) == {}


def test_a_study_is_not_complete_while_its_association_is_open(tmp_path: Path, server: str) -> None:
    study = study_of()
    (path,) = write(tmp_path / "in", still(study, 1))
    with running_node(tmp_path / "spool", server, destination=(f"{tmp_path}/out",), quiet_seconds=0.2) as node:
        entity = AE("CART")
        entity.add_requested_context("1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.1.2.1")
        host, _, port = node.address.rpartition(":")
        association = entity.associate(host, int(port), ae_title="ECHOVLM")
        assert association.send_c_store(pydicom.dcmread(path)).Status == 0
        uid = str(study["StudyInstanceUID"])
        time.sleep(1.0)
        assert node.spool.studies.find(uid).state == "receiving"
        association.release()
        wait_for(lambda: node.spool.studies.find(uid).state != "receiving")
