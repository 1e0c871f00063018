"""Read the JSON files that this project's commands write for each other: of one kind and version, and strictly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from echovlm_edge.runtime.contracts.errors import InvalidInput

Content = TypeVar("Content")


@dataclass(frozen=True)
class VersionedJson(Generic[Content]):
    """A kind of file. Its content has the fields `schema` and `version`, which are checked before all others.

    Attributes:
        schema: the value of that field.
        version: the one that is read.
        content: reads the whole.
        named: what sentences call it, with its article: "a profile".
        give: tells which file to give, as the end of a sentence; `missing` likewise where there is none, empty for no advice.
        again: tells how to replace one of another version; `damaged` likewise one that is.
    """

    schema: str
    version: int
    content: TypeAdapter[Content]
    named: str
    give: str
    again: str
    damaged: str
    missing: str = ""

    def read(self, path: Path) -> Content:
        """Read a file.

        Raises:
            InvalidInput: there is no such file, or it is of another kind or version; the sentence names it.
        """
        try:
            return self.parse(path.read_bytes(), path)
        except OSError as error:
            advice = f": {self.missing}" if self.missing else ""
            noun = self.named.split()[1]
            raise InvalidInput(f"The {noun} {path} cannot be read ({error.strerror}){advice}.") from None

    def parse(self, data: bytes, path: Path) -> Content:
        """Parse a file's bytes; `path` is what sentences call it. Raises as `read`."""
        article, noun = self.named.split()
        try:
            content = json.loads(data.decode())
        except ValueError:
            raise InvalidInput(f"{path} is not JSON: {self.give}.") from None
        if not isinstance(content, dict) or content.get("schema") != self.schema:
            raise InvalidInput(f"{path} is not {self.named}: {self.give}.")
        if (version := content.get("version")) != self.version:
            raise InvalidInput(
                f"{path} is {article} {noun} of version {version}, this program reads {self.version}: {self.again}."
            )
        try:
            return self.content.validate_json(json.dumps(content))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(key) for key in first["loc"])
            raise InvalidInput(f"{path} is a damaged {noun} ({where}: {first['msg']}): {self.damaged}.") from None
