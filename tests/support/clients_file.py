"""Write clients files as operators do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path


def clients_file(folder: Path, clients: Mapping[str, Mapping[str, str | int | bool]]) -> Path:
    """Write a table for each client; its `token` is written as the hash."""
    path = folder / "clients.toml"
    path.write_text("\n".join(_table(name, values) for name, values in clients.items()), encoding="utf-8")
    return path


def _table(name: str, values: Mapping[str, str | int | bool]) -> str:
    lines = [f"[{name}]"]
    for key, value in values.items():
        if key == "token":
            key, value = "token_sha256", sha256(str(value).encode()).hexdigest()
        lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join([*lines, ""])
