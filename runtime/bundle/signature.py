"""Signatures in the format of minisign: Ed25519 over a file's BLAKE2b hash, so that `minisign -V` checks what we sign, and the reverse.

A public key's file, base64 on its second line:     "Ed" | key number 8 | public key 32
A signature's file, base64 on its second line:      "ED" | key number 8 | signature 64      of BLAKE2b-512 of the file
                    base64 on its fourth line:      signature 64 of that signature and of the trusted comment, its third line
A secret key's file without a password (`-W`):      "Ed" | 0 0 | "B2" | 48 unused | key number 8 | seed 32 | public key 32 | checksum 32

https://jedisct1.github.io/minisign/#signature-format
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from echovlm_edge.runtime.contracts.errors import NotPossibleHere

SIGNATURE_SUFFIX = ".minisig"
_ED25519, _PREHASHED = b"Ed", b"ED"
_UNTRUSTED, _TRUSTED = "untrusted comment: ", "trusted comment: "
_LARGEST = 4096  # bytes of a key's or signature's file


@dataclass(frozen=True)
class PublicKey:
    """Whose signatures are accepted: `number` names the key, `key` are its 32 bytes, `file` is where it was read."""

    number: bytes
    key: bytes
    file: Path

    @classmethod
    def read(cls, file: Path) -> PublicKey:
        """Read a public key of minisign.

        Raises:
            NotPossibleHere: it cannot be read, or is none.
        """
        parsed = _decoded(_lines(file, "The public key"), 1, 42)
        if not parsed or parsed[:2] != _ED25519:
            raise NotPossibleHere(f"{file} is no public key of minisign: give the file minisign.pub of whoever signs.")
        return cls(parsed[2:10], parsed[10:], file)


@dataclass(frozen=True)
class SecretKey:
    """A key to sign with: `number` names it, `seed` are its 32 secret bytes."""

    number: bytes
    seed: bytes = field(repr=False)

    @classmethod
    def read(cls, file: Path) -> SecretKey:
        """Read a secret key of minisign that has no password.

        Raises:
            NotPossibleHere: it cannot be read, is none, or has a password.
        """
        parsed = _decoded(_lines(file, "The secret key"), 1, 158)
        if not parsed or parsed[:2] != _ED25519:
            raise NotPossibleHere(f"{file} is no secret key of minisign: make one with minisign -G -W.")
        if parsed[2:4] != b"\0\0":
            raise NotPossibleHere(
                f"The secret key {file} has a password: sign with minisign -S -s {file} -m BUNDLE/bundle.json, or make a key without "
                "one (minisign -G -W)."
            )
        return cls(parsed[54:62], parsed[62:94])


def sign(data: bytes, comment: str, key: SecretKey) -> str:
    """Return the text of the signature's file; the trusted `comment` is signed too. The same arguments give the same text."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # takes 50 ms, and few need it

    secret = Ed25519PrivateKey.from_private_bytes(key.seed)
    signature = secret.sign(hashlib.blake2b(data).digest())
    both = secret.sign(signature + comment.encode())
    number = key.number[::-1].hex().upper()
    return (
        f"{_UNTRUSTED}signature of key {number}\n{_encoded(_PREHASHED + key.number + signature)}\n"
        f"{_TRUSTED}{comment}\n{_encoded(both)}\n"
    )


def sign_file(file: Path, key: SecretKey) -> Path:
    """Sign a file, which is read whole; the signature is written next to it, and returned."""
    signature = file.with_name(file.name + SIGNATURE_SUFFIX)
    signature.write_text(sign(file.read_bytes(), f"file:{file.name}", key), encoding="utf-8")
    return signature


def check_signature(data: bytes, file: Path, keys: Sequence[PublicKey]) -> None:
    """Check that one of `keys` has signed `data`, the content of `file`.

    Raises:
        NotPossibleHere: there is no signature next to the file, it is by another key, or it is of another content.
    """
    signature = file.with_name(file.name + SIGNATURE_SUFFIX)
    if not signature.exists():
        raise NotPossibleHere(
            f"{file} is not signed ({signature.name} is missing), and a signature is required: get the signed one, or sign it yourself "
            "with echovlm-bundle sign."
        )
    lines = _lines(signature, "The signature")
    own, both = _decoded(lines, 1, 74), _decoded(lines, 3, 64)
    if not own or not both or own[:2] != _PREHASHED or not lines[2].startswith(_TRUSTED):
        raise NotPossibleHere(f"{signature} is no signature of minisign: copy it again, or sign {file.name} again.")
    known = [key for key in keys if key.number == own[2:10]]
    if not known:
        raise NotPossibleHere(
            f"{file} is signed by the key {own[2:10][::-1].hex().upper()}, which is none of {_named(keys)}: get another one, or "
            "accept that key with --require-signature."
        )
    comment = lines[2].removeprefix(_TRUSTED).encode()
    if not any(_signed(hashlib.blake2b(data).digest(), own[10:], comment, both, key) for key in known):
        raise NotPossibleHere(
            f"{file} has changed since it was signed by {_named(known)}: copy it again, or sign it again."
        )


def _signed(digest: bytes, signature: bytes, comment: bytes, both: bytes, key: PublicKey) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        public = Ed25519PublicKey.from_public_bytes(key.key)
        public.verify(signature, digest)
        public.verify(both, signature + comment)
    except InvalidSignature:
        return False
    return True


def _named(keys: Sequence[PublicKey]) -> str:
    return ", ".join(str(key.file) for key in keys)


def _lines(file: Path, what: str) -> list[str]:
    try:
        with file.open("rb") as opened:
            return opened.read(_LARGEST).decode("utf-8", "replace").split("\n")
    except OSError as error:
        raise NotPossibleHere(f"{what} {file} cannot be read ({error.strerror}).") from None


def _decoded(lines: Sequence[str], line: int, size: int) -> bytes:
    """Decode a line of base64; empty where it is missing, spelled in another way than ours, or has not `size` bytes."""
    try:
        decoded = base64.b64decode(lines[line], validate=True)
    except (IndexError, binascii.Error, ValueError):
        return b""
    return decoded if len(decoded) == size and _encoded(decoded) == lines[line] else b""


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
