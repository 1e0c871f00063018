"""The node's options, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from echovlm_edge.runtime.contracts.addresses import DEFAULT_ADDRESS
from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.settings import CommandSettings, option

LONGEST_TITLE = 16  # characters of an AE title, PS3.5 6.2
REPORTS, LIMITS, SPOOL, WHO, EYES = "reports", "limits", "spool", "access", "observability"


class NodeSettings(CommandSettings):
    """The options of `echovlm-dicom`. A field `quiet_seconds` is --quiet-seconds and the variable ECHOVLM_DICOM_QUIET_SECONDS."""

    COMMAND = "echovlm-dicom"
    PREFIX = "ECHOVLM_DICOM_"
    EXAMPLE = "ECHOVLM_DICOM_QUIET_SECONDS=30"

    spool: Path = option(..., "folder for what was received and what is owed", "DIR")
    listen: str = option("127.0.0.1:11112", "address for associations; port 0 takes a free one", "HOST:PORT")
    port_file: Path | None = option(None, "write the port to this file when the node is ready", "F")
    ae_title: str = option("ECHOVLM", "its own AE title", "AET")
    server: str = option(DEFAULT_ADDRESS, "address of echovlm-serve", "HOST:PORT")
    destination: tuple[str, ...] = option(
        (),
        "who gets the reports: AET@HOST:PORT, tls://AET@HOST:PORT, https://HOST/… (STOW-RS), fhir+https://HOST/…, or a folder's path",
        "TO",
    )
    stow: str | None = option(None, "take instances by STOW-RS at this address, too", "HOST:PORT")
    quiet_seconds: float = option(
        60.0, "a study is complete when no instance has come for this long, and no association is open", "S", gt=0
    )
    other_classes: Literal["refuse", "keep"] = option(
        "refuse", "what to do with instances that are no images: refuse them, or keep them in the spool unread"
    )

    questions: Path | None = option(
        None, "TOML file that chooses region, language and prompt by AE title and descriptions", "F", REPORTS
    )
    pdf: bool = option(False, "deliver each report as an encapsulated PDF, too", None, REPORTS)
    pdf_font: Path | None = option(
        None,
        "TrueType font of the PDF, with English and Chinese; by default Debian's fonts-wqy-microhei",
        "F",
        REPORTS,
    )
    language: Literal["en", "zh"] = option("en", "language of a report where the questions choose none", None, REPORTS)
    max_pictures: int = option(16, "pictures that a report is about", "N", REPORTS, ge=1, le=64)
    frames_per_cine: int = option(4, "frames of a cine, where the stills leave room", "N", REPORTS, ge=1, le=64)
    near_duplicate_bits: int = option(
        8,
        "a still is left out if its fingerprint differs in so few of 256 bits from another's; -1: never",
        "N",
        REPORTS,
        ge=-1,
        le=256,
    )
    image_tokens: int | None = option(
        None, "visual tokens of a frame at most, for fewer than the server's bound", "N", REPORTS, ge=1
    )
    max_new_tokens: int = option(512, "tokens of a report", "N", REPORTS, ge=1)
    priority: Literal["interactive", "batch"] = option(
        "interactive", "batch reports run after all interactive ones of the server's clients", None, REPORTS
    )
    open_studies: int = option(
        16,
        "studies that are open at the server at once, and at most half of those that it lets the node open; others wait for their turn",
        "N",
        REPORTS,
        ge=1,
        le=1024,
    )
    studies_at_once: int = option(4, "studies that are worked on together", "N", REPORTS, ge=1, le=64)

    max_associations: int = option(32, "associations that may be open at once", "N", LIMITS, ge=1, le=1024)
    max_pdu: int = option(65536, "bytes of one PDU", "N", LIMITS, ge=4096, le=1 << 20)
    max_instance_mb: int = option(1024, "size of one instance", "N", LIMITS, ge=1)
    max_rate: float = option(
        50.0, "instances a second of one AE title; a faster one waits for its answers", "N", LIMITS, gt=0
    )
    idle_seconds: float = option(60.0, "a silent association is closed after this time", "S", LIMITS, gt=0)

    spool_mb: int = option(20480, "size of the spool; beyond it C-STORE is refused with A700", "N", SPOOL, ge=1)
    reserve_mb: int = option(256, "free space of the disk below which C-STORE is refused with A700", "N", SPOOL, ge=0)
    keep_hours: float = option(
        24.0, "keep a delivered study for this long, for late instances and for resend", "H", SPOOL, ge=0
    )
    keep_failed_hours: float = option(168.0, "likewise a study of which no report can be written", "H", SPOOL, ge=0)

    peers: Path | None = option(None, "TOML file of who may send, by AE title, address and certificate", "F", WHO)
    tls_certificate: Path | None = option(
        None, "PEM file of the node's certificate chain; carts then need TLS", "F", WHO
    )
    tls_key: Path | None = option(None, "PEM file of the certificate's private key", "F", WHO)
    tls_client_ca: Path | None = option(None, "PEM file of a CA; carts need a certificate that it signed", "F", WHO)
    stow_token_file: Path | None = option(None, "file with the bearer token that senders by STOW-RS give", "F", WHO)
    insecure: int = option(
        0,
        "given twice (2 in a file): allow other addresses than loopback without TLS or without --peers",
        None,
        WHO,
        ge=0,
    )
    destination_ca: Path | None = option(
        None, "PEM file of the CA of encrypted destinations; by default the system's", "F", WHO
    )
    destination_token_file: Path | None = option(
        None, "file with the bearer token for destinations on the web", "F", WHO
    )
    server_ca: Path | None = option(
        None, "PEM file of the CA that signed the server's certificate; enables TLS", "F", WHO
    )
    server_certificate: Path | None = option(None, "PEM file of the node's certificate for the server", "F", WHO)
    server_key: Path | None = option(None, "PEM file of its private key", "F", WHO)
    token_file: Path | None = option(
        None, "file with the bearer token that identifies the node to the server", "F", WHO
    )

    metrics: str | None = option(None, "serve Prometheus metrics at this address", "HOST:PORT", EYES)
    audit: Path | None = option(None, "append to this file which AE sent what UID when; it holds UIDs", "F", EYES)
    log: Literal["plain", "json"] = option("plain", "format of the log on stderr", None, EYES)


def check_title(title: str) -> None:
    """Check an AE title.

    Raises:
        InvalidInput: it is none: too long, empty, or with other characters than printable ASCII without a backslash.
    """
    printable = title.isascii() and title.isprintable() and "\\" not in title
    if not printable or not title.strip() or len(title) > LONGEST_TITLE:
        raise InvalidInput(
            f"--ae-title {title!r} is none: give 1 to {LONGEST_TITLE} letters, digits and signs without a backslash."
        )
