"""Show `Result.pictures` to people and programs: which frames the model was shown, how, and the notes about them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.clinical.statements import notes_by_file


def as_json(pictures: Sequence[pb.Picture], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return one JSON object for each picture; `names` are those of the call's images, in order."""
    return [
        {
            "file": _file(picture, names),
            "frame": picture.frame,
            "frame_count": picture.frame_count,
            "width": picture.width,
            "height": picture.height,
            "box": _fields(picture.box) if picture.HasField("box") else None,
            "window": _fields(picture.window) if picture.HasField("window") else None,
            "model_width": picture.model_width,
            "model_height": picture.model_height,
            "tokens": picture.tokens,
            "notes": list(picture.notes),
        }
        for picture in pictures
    ]


def print_pictures(pictures: Sequence[pb.Picture], names: Sequence[str], console: Console) -> None:
    """Print a table with a row for each picture, and the notes below it. Columns that would be empty are left out."""
    if not pictures:
        return
    columns = _columns(pictures)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))  # narrow, so that it fits 80 columns
    table.add_column("file", overflow="fold", min_width=10)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    shown = None
    for picture in pictures:
        image = picture.image, picture.study_image
        name = "" if image == shown else _file(picture, names)  # a cine's name is only in its first row
        table.add_row(_plain(name), *(value(picture) for value in columns.values()))
        shown = image
    console.print()
    console.print(table)
    for note in notes_by_file(pictures, lambda picture: _file(picture, names)):
        console.print(_plain(note))


def _plain(text: str) -> Text:
    """Show a text as it is: brackets in a file's name are not markup, and its control characters do not reach the terminal."""
    return Text("".join(letter if letter.isprintable() else "?" for letter in text))


def _columns(pictures: Sequence[pb.Picture]) -> dict[str, Callable[[pb.Picture], str]]:
    columns: dict[str, Callable[[pb.Picture], str]] = {}
    if any(picture.frame_count > 1 for picture in pictures):
        columns["frame\nfrom 0"] = _frame
    columns["size"] = lambda picture: f"{picture.width}x{picture.height}"
    if any(map(_is_cropped, pictures)):
        columns["kept\nx, y"] = _kept
    if any(picture.HasField("window") for picture in pictures):
        columns["window"] = _window
    columns["model\nsees"] = lambda picture: f"{picture.model_width}x{picture.model_height}"
    columns["tokens"] = lambda picture: str(picture.tokens)
    return columns


def _file(picture: pb.Picture, names: Sequence[str]) -> str:
    if picture.WhichOneof("file") == "study_image":
        return f"image {picture.study_image} of the study"
    if not 0 < picture.image <= len(names):
        return f"image {picture.image}"
    return os.fsencode(names[picture.image - 1]).decode("utf-8", "replace")  # a file's name may be any bytes


def _fields(message: Any) -> dict[str, Any]:
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}


def _frame(picture: pb.Picture) -> str:
    return f"{picture.frame} of {picture.frame_count}" if picture.frame_count > 1 else ""


def _is_cropped(picture: pb.Picture) -> bool:
    whole = pb.Box(right=picture.width, bottom=picture.height)
    return picture.HasField("box") and picture.box != whole


def _kept(picture: pb.Picture) -> str:
    kept = picture.box
    return f"{kept.left}-{kept.right}, {kept.top}-{kept.bottom}" if _is_cropped(picture) else ""


def _window(picture: pb.Picture) -> str:
    if not picture.HasField("window"):
        return ""
    half = picture.window.width / 2
    return f"{picture.window.center - half:g} to {picture.window.center + half:g}"
