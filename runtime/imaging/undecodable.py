"""The error of a decoder that refuses a file: the file's fault, unless this decoder refuses every file here."""

from __future__ import annotations

from echovlm_edge.runtime.contracts.errors import InvalidInput


class Undecodable(InvalidInput):
    """A decoder refused a file. The caller checks whether the decoder works here, to decide whose fault it is.

    Attributes:
        name: what sentences call the file.
        encoding: one of `samples.ENCODINGS`, or another transfer syntax.
        called: what a sentence calls the encoding.
    """

    def __init__(self, sentence: str, name: str, encoding: str, called: str) -> None:
        """Set the fields; `sentence` is the one for a damaged file."""
        super().__init__(sentence)
        self.name, self.encoding, self.called = name, encoding, called
