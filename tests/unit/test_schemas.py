"""The JSON schemas in the documentation hold what programs are promised."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from metaleg_node.commands.plan import PlanDocument
from metaleg_node.core.changes import KINDS, Action, change
from metaleg_node.daemon.status import NothingTold
from metaleg_node.reconcile.documents import hook_document
from tests import schemas
from tests.programs import ROOT
from tests.unit.test_status import DOCUMENT
from tools.schemas import DOCUMENTS

CHANGES = [change(action, kind, "it", "since") for action in Action for kind in KINDS]
PLAN: PlanDocument = {
    **hook_document(CHANGES),
    "paths": DOCUMENT["paths"],
    "problems": DOCUMENT["problems"],
}
STOPPED: NothingTold = {"version": 1, "running": False, "healthy": False, "reason": "metaleg-node is not running"}


@pytest.mark.parametrize(
    ("name", "document"),
    [("status", DOCUMENT), ("status", STOPPED), ("plan", PLAN), ("hook", hook_document(CHANGES))],
)
def test_documents_are_as_promised(name: str, document: object) -> None:
    schemas.check(name, document)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.pop("services"),
        lambda d: d.update(more=1),
        lambda d: d.update(version=2),
        lambda d: d.update(started="yesterday"),
        lambda d: d["services"][0].update(family=5),
        lambda d: d["paths"][0].update(slot="2"),
        lambda d: d["problems"][0].pop("code"),
    ],
)
def test_documents_that_are_otherwise_are_noticed(spoil: Callable[[Any], object]) -> None:
    document = copy.deepcopy(DOCUMENT)
    spoil(document)
    with pytest.raises(jsonschema.ValidationError):
        schemas.check("status", document)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_schemas_are_schemas_that_let_later_releases_add_keys(name: str) -> None:
    text = (ROOT / f"docs/schemas/{name}.schema.json").read_text()
    jsonschema.Draft202012Validator.check_schema(json.loads(text))
    assert '"additionalProperties": false' not in text
