"""Certificates for servers and clients."""

from __future__ import annotations

import datetime
from pathlib import Path

import trustme


class Authority:
    """A certificate authority that issues certificates into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ca = folder, trustme.CA()
        self.ca.cert_pem.write_to_path(str(folder / "ca.pem"))
        self.ca_file = folder / "ca.pem"

    def issue(self, name: str, *hosts: str, expired: bool = False) -> tuple[Path, Path]:
        past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        made = self.ca.issue_cert(*hosts, not_after=past if expired else None)
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        key.write_bytes(made.private_key_pem.bytes())
        return certificate, key
