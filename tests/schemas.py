"""What the program prints for others is what docs/schemas promises, and nothing beside it."""

from __future__ import annotations

import json
from typing import Any

import jsonschema

from tests.programs import ROOT


def check(name: str, document: object) -> None:
    """Raises jsonschema.ValidationError where a document breaks its promise, or has a key that is not promised."""
    schema = json.loads((ROOT / f"docs/schemas/{name}.schema.json").read_text())
    for definition in schema["$defs"].values():
        definition["additionalProperties"] = False
    kind: Any = jsonschema.Draft202012Validator
    kind(schema, format_checker=kind.FORMAT_CHECKER).validate(document)
