"""Keys as `minisign -G -W` makes them, for tests on machines without minisign."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True)
class Keys:
    """The files of a pair of keys."""

    public: Path
    secret: Path


def new_keys(folder: Path, name: str = "vendor") -> Keys:
    """Write a pair of keys."""
    pair = Ed25519PrivateKey.generate()
    seed, public = pair.private_bytes_raw(), pair.public_key().public_bytes_raw()
    number = hashlib.sha256(public).digest()[:8]
    secret = number + seed + public
    checksum = hashlib.blake2b(b"Ed" + secret, digest_size=32).digest()
    keys = Keys(folder / f"{name}.pub", folder / f"{name}.key")
    _write(keys.public, b"Ed" + number + public)
    _write(keys.secret, b"Ed\0\0B2" + bytes(48) + secret + checksum)
    return keys


def _write(file: Path, content: bytes) -> None:
    file.write_text(f"untrusted comment: a test's\n{base64.b64encode(content).decode()}\n")
