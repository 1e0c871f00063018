"""Say what of a JSON schema cannot be used, where, and what to write instead: a table over what llguidance answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from re import Match
from typing import Any

from echovlm_edge.runtime.engine.forms.schema_places import Node, places, pointer

LONGEST_NAME = 60  # of what is quoted of a schema
FORMATS = "date-time, date, time, duration, email, hostname, ipv4, ipv6, uri or uuid"
TYPES = "string, number, integer, boolean, object, array or null"
CASES = "write each case as a schema of its own under anyOf"
INSTEAD: Mapping[str, str] = {
    "$dynamicAnchor": "use $defs",
    "$dynamicRef": "use $ref with #/$defs/…",
    "$recursiveAnchor": "use $defs",
    "$recursiveRef": "use $ref with #/$defs/…",
    "contains": "say with items or prefixItems what each item is",
    "dependencies": CASES,
    "dependentRequired": CASES,
    "dependentSchemas": CASES,
    "else": CASES,
    "if": CASES,
    "maxContains": "say with items or prefixItems what each item is",
    "minContains": "say with items or prefixItems what each item is",
    "not": "say what is allowed, with enum, const, anyOf or pattern",
    "propertyNames": "use patternProperties, and additionalProperties: false",
    "then": CASES,
    "unevaluatedItems": "use items after prefixItems",
    "unevaluatedProperties": "use additionalProperties",
    "uniqueItems": "leave it out, and look for doubles in the answer",
}
# llguidance's names of JSON's kinds
KINDS = {"f64": "a number", "positive integer": "a whole number of 0 or more", "array": "a list", "an array": "a list"}

Found = Iterator[tuple[str, str]]  # a keyword's place in a schema that is an object, and what is wrong there


@dataclass(frozen=True)
class Fault:
    """What llguidance says of a fault, and how that is found in a schema that is an object, and said."""

    said: str = field(repr=False)
    find: Callable[[Node, Match[str]], Found] = field(repr=False)


def explain(schema: Any, said: str) -> str | None:
    """Return what is wrong with a schema that llguidance refuses with the words `said`: a clause; None where that is not known."""
    for fault in FAULTS:
        if match := re.search(fault.said, said):
            for path, node in places(schema):
                for keyword, sentence in fault.find(node, match):
                    return f"{path}/{keyword}"[-2 * LONGEST_NAME :] + f" {sentence}"
    return None


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}…"


def _unsupported(node: Node, match: Match[str]) -> Found:
    for keyword in re.findall(r'"([^"]*)"', match[1]):
        if keyword in node:
            yield _short(pointer(keyword)), f"is not supported: {INSTEAD.get(keyword, 'leave it out')}"


def _one_of(node: Node, _: Match[str]) -> Found:
    schemas = node.get("oneOf")
    if isinstance(schemas, list) and not _are_apart(schemas):
        yield (
            "oneOf",
            "has schemas that could hold together, which is not supported: use anyOf, or give each another type",
        )


def _are_apart(schemas: list[Any]) -> bool:
    """Whether no value can have two of the schemas, by their types alone."""
    seen = set[str]()
    for schema in schemas:
        kinds = schema.get("type") if isinstance(schema, dict) else None
        listed = (
            {kinds} if isinstance(kinds, str) else {str(kind) for kind in kinds} if isinstance(kinds, list) else {"?"}
        )
        if "integer" in listed:
            listed = listed | {"number"}
        if listed & seen or "?" in listed:
            return False
        seen |= listed
    return True


def _format(node: Node, match: Match[str]) -> Found:
    if node.get("format") == match[1]:
        yield "format", f"is {_short(match[1])}, which is not known: use {FORMATS}, or a pattern"


def _type(node: Node, match: Match[str]) -> Found:
    kinds = node.get("type")
    if match[1] in (kinds if isinstance(kinds, list) else [kinds]):
        yield "type", f"is {_short(match[1])}, which is none: use {TYPES}"


def _other_document(node: Node, match: Match[str]) -> Found:
    if str(node.get("$ref", "")).partition("#")[0] == match[1].partition("#")[0]:
        yield (
            "$ref",
            f"names another document ({_short(match[1])}), and nothing is fetched: put it under $defs and use #/$defs/…",
        )
    if node.get("$schema") == match[1]:
        yield "$schema", f"names no draft that is known ({_short(match[1])}): leave it out"


def _no_definition(node: Node, match: Match[str]) -> Found:
    if str(node.get("$ref", "")).endswith(match[1]):
        yield "$ref", f"names {_short('#' + match[1])}, which is not there: define it under $defs"


def _endless(node: Node, _: Match[str]) -> Found:
    if "$ref" in node:
        yield "$ref", "leads back to itself and never ends: put it under properties or items, where it can be left out"


def _crossed(node: Node, match: Match[str]) -> Found:
    if match[1] in node and match[3] in node:
        yield match[1], f"is {match[2]}, and {match[3]} is {match[4]}, which no value has: change one of them"


def _required(node: Node, match: Match[str]) -> Found:
    if isinstance(names := node.get("required"), list) and match[1] in names:
        yield "required", f"names {_short(match[1])}, which the schema does not allow: allow it under properties"


def _empty(node: Node, _: Match[str]) -> Found:
    for keyword in ("enum", "anyOf", "oneOf", "type"):
        if node.get(keyword) == []:
            yield keyword, "has no values: list at least one"


def _types_apart(node: Node, _: Match[str]) -> Found:
    if "allOf" in node:
        yield "allOf", "has schemas of different types, which no value has together: use anyOf"


def _pattern(node: Node, match: Match[str]) -> Found:
    names = node.get("patternProperties")
    for keyword, pattern in [("pattern", node.get("pattern")), *(("patternProperties", name) for name in names or ())]:
        if isinstance(pattern, str) and pattern and " ".join(pattern.split()) in match[1]:
            yield keyword, f"has a regular expression that cannot be used: {pattern_fault(match[0])}"


def _patterns_meet(node: Node, match: Match[str]) -> Found:
    names = node.get("patternProperties")
    if isinstance(names, dict) and match[1] in names and match[2] in names:
        both = f"{_short(match[1])} and {_short(match[2])}"
        yield "patternProperties", f"has {both}, which the same name could match: change one, so that none matches both"


def _wrong_kind(node: Node, match: Match[str]) -> Found:
    if match[2] in node:
        yield match[2], f"is {_short(node[match[2]])} and must be {KINDS.get(match[1], match[1])}"


def _must_be(node: Node, match: Match[str]) -> Found:
    if match[1] in node and not isinstance(node[match[1]], list if "array" in match[2] else dict):
        yield match[1], f"must be {KINDS.get(match[2], match[2])}"


def _no_schema(node: Node, _: Match[str]) -> Found:
    for keyword in ("items", "additionalProperties", "additionalItems"):
        if not isinstance(node.get(keyword, {}), dict | bool | list):
            yield keyword, "must be a schema: an object, true or false"
    for keyword in ("properties", "patternProperties", "anyOf", "allOf", "oneOf", "prefixItems", "$defs"):
        inside = node.get(keyword)
        listed = inside.items() if isinstance(inside, dict) else enumerate(inside) if isinstance(inside, list) else ()
        for name, one in listed:
            if not isinstance(one, dict | bool):
                yield f"{keyword}/{pointer(str(name))}", "must be a schema: an object, true or false"


def pattern_fault(said: str) -> str:
    """Return what is wrong with a regular expression that llguidance refuses with the words `said`: a clause."""
    if re.search(r"look-?around", said):
        return r"look-around and \b are not supported: write what may come itself"
    if "backreference" in said:
        return "backreferences are not supported: write what may come itself"
    return re.sub(r"^.*\berror: ", "", said)


FAULTS = (
    Fault(r"Unimplemented keys: \[(.*)\]", _unsupported),
    Fault(r"oneOf constraints are not supported", _one_of),
    Fault(r"Unknown format: (.*)", _format),
    Fault(r"Invalid type: (.*)", _type),
    Fault(r"Resource '(.*)' is not present", _other_document),
    Fault(r"Pointer '(.*)' does not exist", _no_definition),
    Fault(r"NoExtensionBias|infinite", _endless),
    Fault(r"(\w+) \((.*)\) is (?:greater|less) than (?:or equal to )?(\w+) \((.*)\)", _crossed),
    Fault(r"required property '(.*)' is unsatisfiable", _required),
    Fault(r"anyOf is empty|enum is empty|empty", _empty),
    Fault(r"incompatible types", _types_apart),
    Fault(r"regex parse error: (.*)", _pattern),
    Fault(r"patternProperty regexes /(.*)/ and /(.*)/ are not disjoint", _patterns_meet),
    Fault(r"Expected (.*) for '(.*)', got", _wrong_kind),
    Fault(r"(\w+) must be (an? \w+)\b(?! or)", _must_be),
    Fault(r"schema must be an object or boolean", _no_schema),
)
