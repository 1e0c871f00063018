"""Build the parts of a server from its options: certificates, access, decoding processes, the engine, limits."""

from __future__ import annotations

import logging
import resource
from collections.abc import Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import TYPE_CHECKING

from echovlm_edge.runtime.backends.bundle_memory import BundleShape
from echovlm_edge.runtime.bundle.context import SLOTS
from echovlm_edge.runtime.bundle.manifest import Manifest, read_manifest
from echovlm_edge.runtime.bundle.signature import PublicKey
from echovlm_edge.runtime.contracts.addresses import is_loopback_host
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.golden_check import check_golden_tokens, log_checked
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.imaging.sandbox.sandbox import DecodeSandbox, SandboxLimits
from echovlm_edge.runtime.resources.machine_memory import machine_memory
from echovlm_edge.runtime.serving.access.clients import ClientsFile, Everybody
from echovlm_edge.runtime.serving.access.identification import Access
from echovlm_edge.runtime.serving.access.tls import CertificateFiles, TlsFiles
from echovlm_edge.runtime.serving.http.console.study_folder import read_study
from echovlm_edge.runtime.serving.http.exchange.door_options import HttpOptions
from echovlm_edge.runtime.serving.messages import CallLimits
from echovlm_edge.runtime.serving.review.rules import rules_but
from echovlm_edge.runtime.serving.studies import StudyLimits
from echovlm_edge.runtime.serving.supervision.background import in_background
from echovlm_edge.runtime.serving.supervision.bundle_choice import BundleChoice
from echovlm_edge.runtime.serving.supervision.memory_fit import Fit, judge
from echovlm_edge.runtime.serving.supervision.process_end import exit_now
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings
from echovlm_edge.runtime.serving.supervision.served_engine import ServedEngine, WatchdogOptions
from echovlm_edge.runtime.serving.supervision.server_memory import spilled_bytes
from echovlm_edge.runtime.serving.transport.server import ServerOptions, parse_address
from echovlm_edge.runtime.serving.uploads import UploadLimits

if TYPE_CHECKING:
    from echovlm_edge.runtime.observability.traces import Traces

_log = logging.getLogger(__name__)

GAVE_UP = 70  # exit code if engines hang again and again: sysexits' EX_SOFTWARE
STOP_SECONDS = 5.0  # to delete the record of a load, on a disk that may hang


def checked(chosen: ServeSettings) -> tuple[ServerOptions, Access]:
    """Check all that can be checked before minutes are spent on loading a bundle; returns the server's options, and who may call.

    Raises:
        InvalidInput: the options contradict each other, or would open the server to everybody.
        NotPossibleHere: a file that they name cannot be used, or a library is missing.
    """
    for address in (chosen.listen, chosen.http):
        if address:
            parse_address(address)
    refuse_open_doors(chosen)
    check_http(chosen)
    options, known = server_options(chosen), access(chosen)
    if options.tls:
        CertificateFiles(options.tls)
    for key in chosen.require_signature:
        PublicKey.read(key)
    return options, known


def tls_files(chosen: ServeSettings) -> TlsFiles | None:
    """Return the certificate files, or None if the options name none.

    Raises:
        InvalidInput: the options name only some of the files.
    """
    if chosen.tls_certificate and chosen.tls_key:
        return TlsFiles(chosen.tls_certificate, chosen.tls_key, chosen.tls_client_ca)
    if chosen.tls_certificate or chosen.tls_key or chosen.tls_client_ca:
        raise InvalidInput("TLS needs both --tls-certificate and --tls-key.")
    return None


def refuse_open_doors(chosen: ServeSettings) -> None:
    """Refuse to serve an address that others can reach without TLS or to unknown clients, unless --insecure is given twice.

    Raises:
        InvalidInput: the address is not loopback, TLS or the clients are missing, and --insecure was not given twice.
    """
    known = chosen.clients or chosen.tls_client_ca
    addresses = [chosen.listen, *([chosen.http] if chosen.http else [])]
    open_doors = [address for address in addresses if not is_loopback_host(parse_address(address)[0])]
    if not open_doors or (chosen.tls_certificate and known) or chosen.insecure >= 2:
        return
    lacks = "without TLS" if not chosen.tls_certificate else "without client authentication"
    raise InvalidInput(
        f"{open_doors[0]} can be reached by others, and would be served {lacks}: give --tls-certificate, --tls-key and "
        "--clients or --tls-client-ca, or give --insecure twice."
    )


def check_http(chosen: ServeSettings) -> None:
    """Check that the HTTP door can be opened if it is asked for, before minutes are spent on loading a bundle.

    Raises:
        NotPossibleHere: a library is missing.
    """
    if chosen.http:
        import echovlm_edge.runtime.serving.http.connections.door  # noqa: F401  # an optional dependency


def access(chosen: ServeSettings) -> Access:
    """Read who may call.

    Raises:
        NotPossibleHere: the clients file cannot be used.
    """
    return ClientsFile(chosen.clients) if chosen.clients else Everybody()


def decode_sandbox(chosen: ServeSettings) -> DecodeSandbox:
    """Start the processes that decode image files; the caller has to close them.

    Raises:
        InvalidInput: more memory was asked for than this process and its children may have.
    """
    memory_bytes, seconds = chosen.decode_mb << 20, chosen.decode_seconds
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY and memory_bytes > most and "decode_mb" in chosen.model_fields_set:
        raise InvalidInput(
            f"--decode-mb {chosen.decode_mb} is above this process's limit of address space, {most >> 20} MB (ulimit -Hv): "
            "lower it, or raise that limit."
        )
    return DecodeSandbox(SandboxLimits(chosen.decode_processes, memory_bytes, seconds, chosen.decode_user))


def traces(chosen: ServeSettings) -> Traces | None:
    """Make the exporter of calls' traces, or None without a collector; the caller has to close it."""
    if not chosen.traces:
        return None
    from echovlm_edge.runtime.observability.traces import Traces  # an optional dependency

    return Traces(chosen.traces)


def check_memory(chosen: ServeSettings, manifest: Manifest) -> None:
    """Log how much memory the server needs, as a warning if the machine does not have all of it.

    Raises:
        NotPossibleHere: the machine is too small even for the weights and what is allocated at start.
        InvalidInput: the options ask for more than the bundle allows.
    """
    verdict = judge(BundleShape.of(manifest), chosen, machine_memory())
    if verdict.fit is Fit.NEVER:
        raise NotPossibleHere(str(verdict))
    _log.log(logging.INFO if verdict.fit is Fit.FITS else logging.WARNING, "memory: %s", verdict)


def bundle_choice(chosen: ServeSettings, decode: DecodeSandbox, recorded: bool = True) -> BundleChoice:
    """Choose the bundle that is loaded, as `BundleChoice` describes.

    Raises:
        NotPossibleHere: a public key cannot be read.
    """
    signers = [PublicKey.read(file) for file in chosen.require_signature]
    return BundleChoice(chosen.bundle, lambda path: _open_engine(chosen, path, signers, decode), recorded)


def served_engine(
    chosen: ServeSettings, choice: BundleChoice, decode: DecodeSandbox, replacements: int
) -> ServedEngine:
    """Load the bundle's engine; the process ends with GAVE_UP if engines hang more often than `replacements`.

    Raises:
        NotPossibleHere: the bundle cannot be served, nor a previous one, or the decoding processes cannot start.
        InvalidInput: the options ask for more than the bundle allows.
    """
    if chosen.debug_ignore_stop:
        _log.warning("--debug-ignore-stop is for measuring only: generation ignores the stop token")
    engine = ServedEngine(
        choice.open_chosen_or_previous,
        WatchdogOptions(chosen.hang_seconds, replacements),
        lambda: _give_up(choice),
        choice.open_chosen,
        lambda: choice.refused,
    )
    try:
        decode.ready()  # it was starting while the bundle was loaded
    except NotPossibleHere:
        engine.close()
        raise
    return engine


def _give_up(choice: BundleChoice) -> None:
    """End the process; a load that still runs, perhaps on a GPU or a disk that hangs, is not the bundle's crash."""
    wait([in_background(choice.stop, "stop")], STOP_SECONDS)
    exit_now(GAVE_UP)


def _open_engine(
    chosen: ServeSettings, path: Path, signers: Sequence[PublicKey], decode: DecodeSandbox
) -> ReportEngine:
    """Load the bundle at `path`, and let it write its golden tokens."""
    manifest = read_manifest(path, signers)
    check_memory(chosen, manifest)
    options = EngineOptions(
        slots=chosen.slots,
        prefix_bytes=chosen.prefix_mb << 20,
        spilled_bytes=spilled_bytes(BundleShape.of(manifest), chosen),
        image_bytes=chosen.image_mb << 20,
        parked_bytes=chosen.parked_mb << 20,
        turn_seconds=chosen.turn_milliseconds / 1000 if chosen.turn_milliseconds else None,
        ignore_stop=chosen.debug_ignore_stop,
        image_tokens=chosen.image_tokens,
        drafting=chosen.drafting != "off",
        reply_bytes=chosen.reply_mb << 20,
    )
    engine = ReportEngine.open(
        path,
        threads=chosen.threads,
        max_sequence=chosen.max_sequence,
        verify=chosen.verify,
        signers=signers,
        options=options,
        image_decoder=decode,
    )
    try:
        engine.read_vocabulary()  # before anybody's text could stand still
        if not chosen.skip_golden:
            log_checked(check_golden_tokens(engine))
    except BaseException:
        engine.close()
        raise
    return engine


def server_options(chosen: ServeSettings) -> ServerOptions:
    """Collect the address, and the limits of calls, studies and uploads; how many slots there are the engine knows.

    Raises:
        InvalidInput: the options name only some of the certificate files, or a note that there is none of.
        NotPossibleHere: the console's study cannot be read.
    """
    return ServerOptions(
        chosen.listen,
        chosen.port_file,
        chosen.grace,
        chosen.slots or SLOTS,
        chosen.queue,
        chosen.request_mb << 20,
        CallLimits(chosen.max_message_mb << 20),
        StudyLimits(chosen.max_studies, chosen.study_mb << 20, expires_after_seconds=60 * chosen.study_minutes),
        UploadLimits(chosen.upload_mb << 20, expires_after_seconds=60 * chosen.upload_minutes),
        tls_files(chosen),
        rules=rules_but(chosen.no_note),
        http=_http_options(chosen) if chosen.http else None,
    )


def _http_options(chosen: ServeSettings) -> HttpOptions:
    study = read_study(chosen.console_study) if chosen.console_study and not chosen.no_console else ()
    return HttpOptions(chosen.http or "", chosen.http_name, not chosen.no_console, study)
