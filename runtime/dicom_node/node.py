"""A running node: its parts, connected, and started and stopped in order."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

from pynetdicom import evt

from echovlm_edge.runtime.client.report_client import ReportClient
from echovlm_edge.runtime.client.wire.credentials import read_token
from echovlm_edge.runtime.contracts.addresses import host_and_port, is_loopback_host
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.contracts.request import Priority
from echovlm_edge.runtime.contracts.tasks import Language
from echovlm_edge.runtime.dicom_node.audit import Audit
from echovlm_edge.runtime.dicom_node.delivery.delivering import Delivering
from echovlm_edge.runtime.dicom_node.delivery.destinations import Destination, OwnIdentity, destination
from echovlm_edge.runtime.dicom_node.delivery.web_destinations import Web, web_destination
from echovlm_edge.runtime.dicom_node.emptying import Emptying, KeptFor
from echovlm_edge.runtime.dicom_node.receiving import commitment
from echovlm_edge.runtime.dicom_node.receiving.activity import Activity
from echovlm_edge.runtime.dicom_node.receiving.listener import Listener, ListenerLimits
from echovlm_edge.runtime.dicom_node.receiving.peers import Peers, tls_client_context, tls_context
from echovlm_edge.runtime.dicom_node.receiving.procedure_steps import PERFORMED_PROCEDURE_STEP, ProcedureSteps
from echovlm_edge.runtime.dicom_node.receiving.receiver import SUCCESS, Receiver, ReceiverLimits
from echovlm_edge.runtime.dicom_node.receiving.stow import StowDoor, StowOptions
from echovlm_edge.runtime.dicom_node.reporting.documents import DocumentMaker, find_font
from echovlm_edge.runtime.dicom_node.reporting.questions import read_questions
from echovlm_edge.runtime.dicom_node.reporting.study_worker import ReportOptions, StudyWorker
from echovlm_edge.runtime.dicom_node.reporting.working import Quiet, Working
from echovlm_edge.runtime.dicom_node.settings import NodeSettings, check_title
from echovlm_edge.runtime.dicom_node.spool.spool import Spool

MB = 1 << 20

_log = logging.getLogger(__name__)


class Node:
    """A running node.

    Raises:
        InvalidInput: an option is wrong, or the node could be reached by others without protection.
        NotPossibleHere: the spool, the address or a file cannot be used.
    """

    def __init__(self, chosen: NodeSettings) -> None:
        """Start: first what is owed is delivered and worked on, then associations are accepted."""
        address = parse_address(chosen.listen)
        check_title(chosen.ae_title)
        refuse_open_doors(chosen, address[0])
        if not chosen.destination:
            raise InvalidInput("--destination is missing: say who gets the reports, for example PACS@10.0.0.5:104.")
        self._ending = ExitStack()
        try:
            self._start(chosen, address)
        except BaseException:
            self._ending.close()
            raise

    def _start(self, chosen: NodeSettings, address: tuple[str, int]) -> None:
        destinations = destinations_of(chosen, chosen.spool / "incoming")
        options = report_options(chosen, destinations)
        peers, audit = Peers(chosen.peers), Audit(chosen.audit)
        self._chosen, self._tls = chosen, None
        if chosen.tls_certificate and chosen.tls_key:
            self._tls = tls_context(chosen.tls_certificate, chosen.tls_key, chosen.tls_client_ca)
        self.spool = Spool(chosen.spool)
        self._ending.callback(self.spool.close)
        self.spool.claim()
        client = ReportClient(
            chosen.server,
            token_file=chosen.token_file,
            ca=chosen.server_ca,
            certificate=chosen.server_certificate,
            key=chosen.server_key,
        )
        self._ending.callback(client.close)
        activity = Activity()
        kept = KeptFor(chosen.keep_hours * 3600, chosen.keep_failed_hours * 3600)
        self._emptying = Emptying(self.spool, kept)
        self._ending.callback(self._emptying.close)
        self.delivering = Delivering(self.spool, destinations, audit)
        self._ending.callback(self.delivering.close)
        steps = ProcedureSteps(self.spool)
        kinds = {kind for kind, _ in options.destinations}
        maker = DocumentMaker(kinds, find_font(chosen.pdf_font) if chosen.pdf else None)
        worker = StudyWorker(self.spool, client, options, maker)
        self.working = Working(
            self.spool, activity, worker, Quiet(chosen.quiet_seconds), steps.is_complete, chosen.studies_at_once
        )
        self._ending.callback(self.working.close)
        other = chosen.other_classes == "keep"
        limits = ReceiverLimits(
            chosen.spool_mb * MB, chosen.reserve_mb * MB, chosen.max_instance_mb * MB, chosen.max_rate, other
        )
        self.receiver = Receiver(self.spool, activity, audit, limits, self._emptying.make_room)
        self.listener = Listener(
            address,
            chosen.ae_title,
            self.receiver.new_file,
            [
                (evt.EVT_C_STORE, self.receiver.store),
                (evt.EVT_C_ECHO, lambda event: SUCCESS),
                (evt.EVT_N_CREATE, steps.create),
                (evt.EVT_N_SET, steps.set),
                (evt.EVT_N_ACTION, commitment.refuse),
            ],
            limits=ListenerLimits(chosen.max_associations, chosen.max_pdu, chosen.idle_seconds),
            peers=peers,
            tls=self._tls,
            other_classes=other,
            further_classes=(PERFORMED_PROCEDURE_STEP, commitment.STORAGE_COMMITMENT),
        )
        self._ending.callback(self.listener.close)
        self.stow = self._stow(chosen, peers) if chosen.stow else None
        self.address = f"{chosen.listen.rpartition(':')[0]}:{self.listener.port}"

    def renew_certificates(self) -> None:
        """Read the certificates' files again, for new connections; files that cannot be used change nothing, and are logged."""
        chosen = self._chosen
        if self._tls is None or not chosen.tls_certificate or not chosen.tls_key:
            return
        try:
            tls_context(chosen.tls_certificate, chosen.tls_key, chosen.tls_client_ca)  # checked before they are taken
            self._tls.load_cert_chain(chosen.tls_certificate, chosen.tls_key)
            if chosen.tls_client_ca:
                self._tls.load_verify_locations(chosen.tls_client_ca)
            _log.info("read the certificates again")
        except (NotPossibleHere, OSError) as error:
            _log.error("the certificates cannot be used, the old ones stay: %s", error)

    def _stow(self, chosen: NodeSettings, peers: Peers) -> StowDoor:
        options = StowOptions(
            parse_address(chosen.stow or ""),
            read_token(chosen.stow_token_file),
            chosen.max_associations,
            chosen.idle_seconds,
            self._tls,
        )
        door = StowDoor(self.receiver, peers, options)
        self._ending.callback(door.close)
        return door

    def close(self) -> None:
        """Stop, the last started first: nothing is lost, as everything is in the spool."""
        self._ending.close()


def destinations_of(chosen: NodeSettings, folder: Path) -> list[Destination]:
    """Read the destinations of the options.

    Raises:
        InvalidInput: one is none, or is given twice.
        NotPossibleHere: a certificate cannot be used.
    """
    tls = tls_client_context(chosen.destination_ca, chosen.tls_certificate, chosen.tls_key)
    own = OwnIdentity(chosen.ae_title, folder, tls)
    if len(set(chosen.destination)) < len(chosen.destination):
        raise InvalidInput("--destination is given twice with the same value: leave one out.")
    web = Web(tls, read_token(chosen.destination_token_file))
    kinds = ("sr", "pdf") if chosen.pdf else ("sr",)
    return [web_destination(given, kinds, web) or destination(given, kinds, own) for given in chosen.destination]


def report_options(chosen: NodeSettings, destinations: list[Destination]) -> ReportOptions:
    """Read how reports are asked for.

    Raises:
        NotPossibleHere: the questions file cannot be used.
    """
    return ReportOptions(
        chosen.max_pictures,
        chosen.frames_per_cine,
        chosen.near_duplicate_bits,
        tuple(read_questions(chosen.questions)) if chosen.questions else (),
        Language(chosen.language),
        chosen.max_new_tokens,
        Priority.BATCH if chosen.priority == "batch" else Priority.INTERACTIVE,
        open_studies=chosen.open_studies,
        destinations=tuple((kind, each.name) for each in destinations for kind in each.kinds),
        image_tokens=chosen.image_tokens,
    )


def refuse_open_doors(chosen: NodeSettings, host: str) -> None:
    """Refuse to listen where others can send without TLS or without being known, unless --insecure is given twice.

    Raises:
        InvalidInput: an address is not loopback, and TLS, --peers or --stow-token-file is missing.
    """
    if bool(chosen.tls_certificate) != bool(chosen.tls_key):
        raise InvalidInput("--tls-certificate and --tls-key belong together: give both.")
    doors = [(chosen.listen, host, chosen.peers, "--peers")]
    if chosen.stow:
        doors.append((chosen.stow, parse_address(chosen.stow)[0], chosen.stow_token_file, "--stow-token-file"))
    for address, at, known, option in doors:
        if is_loopback_host(at) or (chosen.tls_certificate and known) or chosen.insecure >= 2:
            continue
        lacks = "without TLS" if not chosen.tls_certificate else "by unknown senders"
        raise InvalidInput(
            f"{address} can be reached by others, {lacks}: give --tls-certificate, --tls-key and {option}, or --insecure twice."
        )


def parse_address(address: str) -> tuple[str, int]:
    """Split HOST:PORT; an IPv6 host is in brackets.

    Raises:
        InvalidInput: it is not HOST:PORT.
    """
    if (parts := host_and_port(address)) is None:
        raise InvalidInput(f"The address {address} is not HOST:PORT: write for example 127.0.0.1:11112.")
    return parts
