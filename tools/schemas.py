"""JSON schemas of what the program prints for others, from the types that it is made of."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union

from metaleg_node.commands.explain_text import ExplainDocument
from metaleg_node.commands.plan import PlanDocument
from metaleg_node.daemon.status import NothingTold, StatusDocument
from metaleg_node.doctor.text import DoctorDocument
from metaleg_node.reconcile.documents import HookDocument

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_NAMES: dict[type, str] = {str: "string", bool: "boolean", int: "integer", float: "number", types.NoneType: "null"}

Schema = dict[str, Any]

DOCUMENTS: dict[str, tuple[str, tuple[type, ...]]] = {
    "plan": ("What `metaleg-node plan --json` prints.", (PlanDocument,)),
    "status": ("What `metaleg-node status --json` prints.", (StatusDocument, NothingTold)),
    "hook": ("What a hook reads on its standard input.", (HookDocument,)),
    "doctor": ("What `metaleg-node doctor --json` prints.", (DoctorDocument,)),
    "explain": ("What `metaleg-node explain --json` prints.", (ExplainDocument,)),
}
"""What is promised, and the kinds of objects that it may be."""


def files() -> dict[str, Callable[[], str]]:
    """Path and text of each schema."""
    return {f"docs/schemas/{name}.schema.json": _Writer(name) for name in DOCUMENTS}


def schema(name: str) -> Schema:
    """The schema of one document. Objects may get more keys in a later release, so others are allowed."""
    description, kinds = DOCUMENTS[name]
    definitions: dict[str, Schema] = {}
    refs = [_of(kind, definitions) for kind in kinds]
    body = refs[0] if len(refs) == 1 else {"oneOf": refs}
    return {"$schema": _DIALECT, "title": name, "description": description, **body, "$defs": definitions}


class _Writer:
    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self) -> str:
        return f"{json.dumps(schema(self._name), indent=2)}\n"


def _of(kind: Any, definitions: dict[str, Schema]) -> Schema:  # noqa: PLR0911 - one for each kind of type
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if typing.is_typeddict(kind):
        return _object(kind, definitions)
    if origin is Annotated:
        return {**_of(arguments[0], definitions), "format": arguments[1]}
    if origin is Literal:
        return {"const": arguments[0]} if len(arguments) == 1 else {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": _of(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(arguments[1], definitions)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(one, definitions) for one in arguments]}
    return {"type": _NAMES[kind]}


def _object(kind: Any, definitions: dict[str, Schema]) -> Schema:
    name = kind.__name__
    if name not in definitions:
        definitions[name] = {}
        hints = typing.get_type_hints(kind, include_extras=True)
        definitions[name] = {
            "description": " ".join((inspect.getdoc(kind) or "").split()),
            "type": "object",
            "properties": {key: _of(hint, definitions) for key, hint in hints.items()},
            "required": sorted(kind.__required_keys__),
        }
    return {"$ref": f"#/$defs/{name}"}
