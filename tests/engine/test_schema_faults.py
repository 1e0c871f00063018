"""What of a JSON schema cannot be used is said by its place and with what to write instead, for every keyword of draft 2020-12."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from jsonschema_specifications import REGISTRY

from echovlm_edge.runtime.contracts.errors import UnusableForm
from echovlm_edge.runtime.contracts.text_form import PatternForm, SchemaForm
from echovlm_edge.runtime.engine.forms.form_compiler import _unusable
from echovlm_edge.runtime.engine.forms.schema_faults import INSTEAD, explain
from echovlm_edge.runtime.engine.forms.schema_places import places
from tests.support.forms import SCHEMAS, small_compiler

COMPILER = small_compiler()
VOCABULARIES = "core", "applicator", "unevaluated", "validation", "meta-data", "format-annotation", "content"
OBJECT, STRING, ARRAY = {"type": "object"}, {"type": "string"}, {"type": "array"}

TAKEN: dict[str, dict[str, Any]] = {
    "$id": {"$id": "https://example.com/finding", **STRING},
    "$schema": {"$schema": "https://json-schema.org/draft/2020-12/schema", **STRING},
    "$ref": {"$defs": {"a": STRING}, "$ref": "#/$defs/a"},
    "$anchor": {"$anchor": "a", **STRING},
    "$vocabulary": {"$vocabulary": {"https://example.com/v": True}, **STRING},
    "$comment": {"$comment": "x", **STRING},
    "$defs": {"$defs": {"a": STRING}, **STRING},
    "prefixItems": {**ARRAY, "prefixItems": [STRING], "items": False},
    "items": {**ARRAY, "items": STRING},
    "additionalProperties": {**OBJECT, "additionalProperties": STRING},
    "properties": {**OBJECT, "properties": {"not": STRING, "uniqueItems": STRING}},
    "patternProperties": {**OBJECT, "patternProperties": {"^a": STRING}},
    "allOf": {"allOf": [{"type": "integer"}, {"minimum": 3}]},
    "anyOf": {"anyOf": [STRING, {"type": "null"}]},
    "oneOf": {"oneOf": [STRING, {"type": "null"}]},
    "type": {"type": ["string", "null"]},
    "const": {"const": 3},
    "enum": {"enum": [1, "a"]},
    "multipleOf": {"type": "integer", "multipleOf": 5},
    "maximum": {"type": "integer", "maximum": 5},
    "exclusiveMaximum": {"type": "number", "exclusiveMaximum": 5},
    "minimum": {"type": "integer", "minimum": 5},
    "exclusiveMinimum": {"type": "number", "exclusiveMinimum": 5},
    "maxLength": {**STRING, "maxLength": 5},
    "minLength": {**STRING, "minLength": 5},
    "pattern": {**STRING, "pattern": "^a+$"},
    "maxItems": {**ARRAY, "maxItems": 5},
    "minItems": {**ARRAY, "minItems": 5},
    "maxProperties": {**OBJECT, "maxProperties": 2},
    "minProperties": {**OBJECT, "minProperties": 2},
    "required": {**OBJECT, "required": ["a"]},
    "title": {"title": "a", **STRING},
    "description": {"description": "a", **STRING},
    "default": {"default": "a", **STRING},
    "deprecated": {"deprecated": True, **STRING},
    "readOnly": {"readOnly": True, **STRING},
    "writeOnly": {"writeOnly": True, **STRING},
    "examples": {"examples": ["a"], **STRING},
    "format": {**STRING, "format": "date"},
    "contentEncoding": {**STRING, "contentEncoding": "base64"},
    "contentMediaType": {**STRING, "contentMediaType": "text/plain"},
    "contentSchema": {**STRING, "contentSchema": STRING},
}
UNSUPPORTED: dict[str, dict[str, Any]] = {
    "$dynamicRef": {"$dynamicRef": "#a"},
    "$dynamicAnchor": {"$dynamicAnchor": "a", **STRING},
    "$recursiveRef": {"$recursiveRef": "#"},
    "contains": {**ARRAY, "contains": STRING},
    "minContains": {**ARRAY, "minContains": 1},
    "maxContains": {**ARRAY, "maxContains": 1},
    "dependencies": {**OBJECT, "dependencies": {"a": ["b"]}},
    "dependentSchemas": {**OBJECT, "dependentSchemas": {"a": {"required": ["b"]}}},
    "dependentRequired": {**OBJECT, "dependentRequired": {"a": ["b"]}},
    "propertyNames": {**OBJECT, "propertyNames": {"pattern": "^a"}},
    "if": {"if": STRING},
    "then": {"then": STRING},
    "else": {"else": STRING},
    "not": {"not": STRING},
    "unevaluatedItems": {**ARRAY, "unevaluatedItems": False},
    "unevaluatedProperties": {**OBJECT, "unevaluatedProperties": False},
    "uniqueItems": {**ARRAY, "uniqueItems": True},
}
# By name: the schema, the fault's place, and words of the sentence.
FAULTY: dict[str, tuple[dict[str, Any], str, str]] = {
    "two that hold": ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "/oneOf", "use anyOf"),
    "the second oneOf": (
        {"anyOf": [{"oneOf": [STRING, {"type": "null"}]}, {"oneOf": [{"const": 1}, {"const": 2}]}]},
        "/anyOf/1/oneOf",
        "use anyOf",
    ),
    "format": ({**OBJECT, "properties": {"day": {**STRING, "format": "poem"}}}, "/properties/day/format", "is poem"),
    "format of a draft": ({**STRING, "format": "uri-reference"}, "/format", "or a pattern"),
    "type": ({"type": "poem"}, "/type", "use string, number"),
    "one of the types": ({"type": ["string", "poem"]}, "/type", "is poem"),
    "another document": ({**ARRAY, "items": {"$ref": "https://x.org/y"}}, "/items/$ref", "nothing is fetched"),
    "another draft": ({"$schema": "https://x.org/draft", **STRING}, "/$schema", "leave it out"),
    "no definition": ({"$ref": "#/$defs/cyst"}, "/$ref", "names #/$defs/cyst, which is not there"),
    "itself": ({"$ref": "#"}, "/$ref", "never ends"),
    "itself by others": (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        "/$ref",
        "never ends",
    ),
    "bounds": ({"type": "integer", "minimum": 5, "maximum": 3}, "/minimum", "is 5, and maximum is 3"),
    "lengths": ({**STRING, "minLength": 5, "maxLength": 3}, "/minLength", "is 5, and maxLength is 3"),
    "numbers of items": ({**ARRAY, "minItems": 3, "maxItems": 1}, "/minItems", "is 3, and maxItems is 1"),
    "a name that may not be": (
        {**OBJECT, "required": ["side"], "additionalProperties": False},
        "/required",
        "names side, which the schema does not allow",
    ),
    "no value": ({"enum": []}, "/enum", "list at least one"),
    "no schema": ({"anyOf": []}, "/anyOf", "list at least one"),
    "types apart": ({"allOf": [STRING, {"type": "integer"}]}, "/allOf", "use anyOf"),
    "look-around": ({**STRING, "pattern": "(?=a)b"}, "/pattern", r"look-around and \b are not supported"),
    "a pattern": ({**STRING, "pattern": "["}, "/pattern", "unclosed character class"),
    "a pattern of names": ({**OBJECT, "patternProperties": {"[": STRING}}, "/patternProperties", "unclosed"),
    "patterns that meet": (
        {**OBJECT, "patternProperties": {"^a": STRING, "^.b": STRING}},
        "/patternProperties",
        "has ^a and ^.b",
    ),
    "a number as text": ({**STRING, "maxLength": "3"}, "/maxLength", "is 3 and must be a whole number"),
    "a negative length": ({**STRING, "maxLength": -1}, "/maxLength", "must be a whole number of 0 or more"),
    "a bound as text": ({"type": "integer", "minimum": "a"}, "/minimum", "must be a number"),
    "names as text": ({**OBJECT, "required": "a"}, "/required", "must be a list"),
    "values as a number": ({"enum": 3}, "/enum", "must be a list"),
    "properties as a list": ({**OBJECT, "properties": [1]}, "/properties", "must be an object"),
    "items as a number": ({**ARRAY, "items": 3}, "/items", "must be a schema"),
    "a property as a number": ({**OBJECT, "properties": {"a": 3}}, "/properties/a", "must be a schema"),
    "deep": (
        {**OBJECT, "properties": {"a/b": {**ARRAY, "items": {"anyOf": [STRING, {**ARRAY, "uniqueItems": True}]}}}},
        "/properties/a~1b/items/anyOf/1/uniqueItems",
        "is not supported",
    ),
}


def refusal(schema: dict[str, Any]) -> str:
    with pytest.raises(UnusableForm) as refused:
        COMPILER.compile(SchemaForm(json.dumps(schema)))
    sentence = str(refused.value)
    assert sentence.startswith("The JSON schema cannot be used: ") and sentence.endswith(".")
    assert "\n" not in sentence and len(sentence) < 450
    return sentence.removeprefix("The JSON schema cannot be used: ")


def test_every_keyword_of_the_draft_is_here() -> None:
    drafts = [REGISTRY.contents(f"https://json-schema.org/draft/2020-12/meta/{name}") for name in VOCABULARIES]
    keywords = {keyword for draft in drafts for keyword in draft["properties"]}
    assert keywords <= TAKEN.keys() | UNSUPPORTED.keys() and len(keywords) > 50
    assert not TAKEN.keys() & UNSUPPORTED.keys()
    assert UNSUPPORTED.keys() <= INSTEAD.keys()


@pytest.mark.parametrize("keyword", TAKEN)
def test_a_keyword_is_taken(keyword: str) -> None:
    assert keyword in TAKEN[keyword]
    COMPILER.compile(SchemaForm(json.dumps(TAKEN[keyword])))


@pytest.mark.parametrize("keyword", UNSUPPORTED)
@pytest.mark.parametrize("inside", [False, True])
def test_a_keyword_is_refused_by_its_place_with_what_to_write_instead(keyword: str, inside: bool) -> None:
    schema, place = UNSUPPORTED[keyword], ""
    if inside:  # beside a property that is called as the keyword
        schema, place = (
            {**OBJECT, "properties": {keyword: STRING, "b": {**ARRAY, "items": schema}}},
            "/properties/b/items",
        )
    assert refusal(schema) == f"{place}/{keyword} is not supported: {INSTEAD[keyword]}."


@pytest.mark.parametrize("name", FAULTY)
def test_a_fault_is_said_by_its_place(name: str) -> None:
    schema, place, words = FAULTY[name]
    sentence = refusal(schema)
    assert sentence.startswith(f"{place} ") and words in sentence


def test_what_nobody_has_thought_of_has_the_library_s_own_words() -> None:
    for said in ("Cosmic rays: ['a']", "Unknown format: x"):  # and where the place is not found
        assert explain({"type": "string"}, said) is None
        sentence = str(_unusable(SchemaForm('{"type": "string"}'), said))
        assert sentence == f"The JSON schema cannot be used: the library that keeps to it says: {said}."


def test_a_name_in_a_schema_is_no_limit_of_the_library() -> None:
    assert "names limit, which" in refusal({**OBJECT, "required": ["limit"], "additionalProperties": False})


@given(SCHEMAS)
def test_every_schema_inside_a_schema_is_found(schema: dict[str, Any]) -> None:
    listed = dict(places(schema))
    assert listed[""] is schema
    for path, node in listed.items():
        value: Any = schema
        for step in path.split("/")[1:]:
            value = value[int(step) if isinstance(value, list) else step.replace("~1", "/").replace("~0", "~")]
        assert value is node
    assert json.dumps(schema).count('"type"') <= sum("type" in node for node in listed.values())


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"\bfoo", r"\b are not supported"),
        ("(?=a)b", "look-around"),
        (r"(a)\1", "backreferences"),
        ("[", "unclosed character class"),
    ],
)
def test_a_regular_expression_s_fault_is_said_plainly(pattern: str, words: str) -> None:
    with pytest.raises(UnusableForm, match="The regular expression cannot be used") as refused:
        COMPILER.compile(PatternForm(pattern))
    assert words in str(refused.value) and "regex parse" not in str(refused.value)
