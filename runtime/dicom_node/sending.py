"""`echovlm-dicom send`: send files to a node or any other storage SCP, as a cart would."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from pydicom.dataset import FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pynetdicom import AE, _config

from echovlm_edge.runtime.client.image_folder import find_images
from echovlm_edge.runtime.contracts.command import SEVERAL, add_version
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere, ServerUnavailable
from echovlm_edge.runtime.contracts.image_path import unreadable
from echovlm_edge.runtime.dicom_node.peer_address import PeerAddress, peer_address
from echovlm_edge.runtime.dicom_node.settings import check_title

MOST_CONTEXTS = 128  # of one association
ANSWER_SECONDS = 120.0  # for an instance: its receiver's disk may be busy


def send_parser() -> argparse.ArgumentParser:
    """Make the parser of `send`."""
    parser = argparse.ArgumentParser(
        prog="echovlm-dicom send",
        description="Send DICOM files, or the DICOM files in folders, by C-STORE in one association.",
    )
    add_version(parser)
    parser.add_argument("files", metavar="PATH", type=Path, help="files and folders", **SEVERAL)
    parser.add_argument("--to", default="ECHOVLM@127.0.0.1:11112", metavar="AET@HOST:PORT", help="default: %(default)s")
    parser.add_argument("--ae-title", default="ECHOVLM-SEND", metavar="AET", help="its own (default %(default)s)")
    return parser


def run_send(options: argparse.Namespace) -> int:
    """Send the files; returns the exit code.

    Raises:
        InvalidInput: a file is no DICOM, or was refused.
        ServerUnavailable: there is no association.
    """
    peer = peer_address(options.to)
    if peer is None or peer.encrypted:
        raise InvalidInput(f"--to {options.to} is not AET@HOST:PORT: write for example ECHOVLM@127.0.0.1:11112.")
    check_title(options.ae_title)
    files = list(_files(options.files))
    refused = send(files, peer, options.ae_title)
    print(f"{len(files) - len(refused)} of {len(files)} instances were sent to {options.to}.")
    if refused:
        path, status = next(iter(refused.items()))
        raise InvalidInput(
            f"{path} was refused with status {status:04X}, and {len(refused) - 1} more: see the node's log."
        )
    return 0


def send(files: list[Path], peer: PeerAddress, own_title: str) -> dict[Path, int]:
    """Send files by C-STORE in one association; returns those that were refused, with their statuses.

    Raises:
        InvalidInput: a file is no DICOM.
        ServerUnavailable: there is no association, or it ended.
    """
    _config.STORE_SEND_CHUNKED_DATASET = True
    entity = AE(own_title)
    entity.dimse_timeout = entity.network_timeout = ANSWER_SECONDS
    contexts: dict[tuple[str, str], None] = {}
    for path in files:
        try:
            meta = read_file_meta_info(path)
        except OSError as error:
            raise unreadable(path, error) from None
        except InvalidDicomError:
            meta = FileMetaDataset()
        if "MediaStorageSOPClassUID" not in meta or "TransferSyntaxUID" not in meta:
            raise InvalidInput(f"{path} is no DICOM file with meta information: give another.")
        contexts[str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)] = None
    if not files or len(contexts) > MOST_CONTEXTS:
        raise NotPossibleHere(
            f"There are {len(files)} files of {len(contexts)} kinds: give at least one, and fewer kinds."
        )
    entity.requested_contexts = []
    for sop_class, syntax in contexts:
        entity.add_requested_context(sop_class, syntax)
    association, name = peer.associate(entity), f"{peer.title}@{peer.host}:{peer.port}"
    if association is None or not association.is_established:
        why = "rejects the association" if association and association.is_rejected else "does not answer"
        raise ServerUnavailable(f"{name} {why}: check its address, its AE title, and whom it knows.")
    refused = {}
    try:
        for path in files:
            try:
                status = association.send_c_store(path)
            except ValueError:  # no presentation context was accepted for it
                refused[path] = 0x0122
                continue
            except RuntimeError:
                raise ServerUnavailable(f"{name} ended the association: see the node's log.") from None
            if status.get("Status") != 0:
                refused[path] = int(status.get("Status", 0x0110))
    finally:
        association.release()
    return refused


def _files(given: list[Path]) -> Iterator[Path]:
    for path in given:
        yield from find_images(path).paths
