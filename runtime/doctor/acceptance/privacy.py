"""Keep names of people and places out of an archive: what steps and logs say is written without them."""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SHORTEST = 3  # letters of a name that is replaced: a shorter one would be found inside other words
ORDINARY = ("root", "user", "localhost", "echovlm")  # names that say nothing


@dataclass(frozen=True)
class Redaction:
    """What is replaced by what; longer texts go first."""

    words: Mapping[str, str]

    @classmethod
    def of(cls, bundle: Path, output: Path, checks: Path | None = None) -> Redaction:
        """Replace the paths of the bundle, the output, the checks and the home folder, the host's name, and the user's."""
        folders = {"BUNDLE": bundle, "OUTPUT": output} | ({"CHECKS": checks} if checks else {})
        paths = {str(form): word for word, path in folders.items() for form in _forms(path)}
        names: dict[str, str] = {}
        with suppress(OSError, KeyError):
            names[getpass.getuser()] = "USER"
        host = socket.gethostname()
        names |= {host.partition(".")[0]: "HOST", host: "HOST"}
        found = {str(Path.home()): "HOME", **names, **paths}
        return cls({name: word for name, word in found.items() if len(name) >= SHORTEST and name not in ORDINARY})

    def text(self, text: str) -> str:
        """Return the text without them."""
        for name in sorted(self.words, key=len, reverse=True):
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", self.words[name], text)
        return text

    def value(self, value: object) -> object:
        """Return plain values of JSON whose texts are without them; names of fields stay."""
        match value:
            case str():
                return self.text(value)
            case list():
                return [self.value(one) for one in value]
            case dict():
                return {name: self.value(one) for name, one in value.items()}
        return value


def _forms(path: Path) -> set[Path]:
    return {path.absolute(), path.resolve()}
