"""Walk through the schemas inside a JSON schema: a property that is called `not` is no keyword."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Node = dict[str, Any]
# Keywords whose value is a schema, a list of schemas, or schemas by name; definitions come last, as they may be unused.
ONE = (
    *("items", "additionalItems", "unevaluatedItems", "contains", "additionalProperties", "unevaluatedProperties"),
    *("propertyNames", "not", "if", "then", "else", "contentSchema"),
)
LISTED = "prefixItems", "items", "allOf", "anyOf", "oneOf"
NAMED = "properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions"


def places(schema: Any, path: str = "") -> Iterator[tuple[str, Node]]:
    """Yield every schema that is an object, each with its path as a JSON pointer; the outermost first."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for keyword in ONE:
        yield from places(schema.get(keyword), f"{path}/{keyword}")
    for keyword in LISTED:
        for number, one in enumerate(_of(schema.get(keyword), list)):
            yield from places(one, f"{path}/{keyword}/{number}")
    for keyword in NAMED:
        for name, one in _of(schema.get(keyword), dict).items():
            yield from places(one, f"{path}/{keyword}/{pointer(name)}")


def pointer(name: str) -> str:
    """Write a name as a part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def _of(value: Any, kind: Any) -> Any:
    return value if isinstance(value, kind) else kind()
