"""Reads environment variables from a text: lines NAME=value, as in an EnvironmentFile= of systemd or an --env-file of
docker; what Linux shows of a process in /proc/PID/environ, with NULs in between; or the manifests of the pods that have
them, in YAML or JSON, as `kubectl get` prints them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from metaleg_node.configuration.config import ConfigError
from metaleg_node.import_env.translation import Environment
from metaleg_node.import_env.variables import VARIABLES, Program
from metaleg_node.text import printable

_MANIFEST = re.compile(r"\A\s*\{|^(apiVersion|kind|items)\s*:", re.MULTILINE)
_TEMPLATE = re.compile(r"\{\{-?[^{}]*\}\}")
_RENDERED = "give what `helm template` or `helm get manifest` prints"
_ASSIGNMENT = re.compile(r"^\s*(export\s+)?[A-Za-z_][A-Za-z0-9_]*=", re.MULTILINE)
_POD_SPECS = (("spec",), ("spec", "template", "spec"), ("spec", "jobTemplate", "spec", "template", "spec"))
"""Where a Pod, a DaemonSet (or whatever else has a template) and a CronJob have it."""
_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", re.DOTALL)
_VALUE = re.compile(
    r"""(?: '(?P<single>[^']*)' | "(?P<double>(?:[^"\\]|\\.)*)" | (?P<bare>[^'"].*?)? ) \s* (?:(?<!\S)\#.*)?""",
    re.DOTALL | re.VERBOSE,
)
_ESCAPED = re.compile(r'\\(["\\$`])')
_PROGRAM_OF = {variable.name: variable.program for variable in VARIABLES}


def load(path: Path) -> Environment:
    """Raises ConfigError."""
    file = str(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError.of(file, f"cannot be read: {error.strerror}; name a file with the variables") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError.of(file, f"line {line}: not UTF-8; save the file as UTF-8") from error
    return parse(text, file=file)


def parse(text: str, *, file: str) -> Environment:
    """Raises ConfigError; `file` is only for its text."""
    if "\0" in text:
        return Environment(variables=dict(item.split("=", 1) for item in text.split("\0") if "=" in item))
    if _TEMPLATE.search(text):
        raise ConfigError.of(file, f"is a template of Helm; {_RENDERED}")
    if _MANIFEST.search(text):
        return _of_manifests(text, file)
    if not _ASSIGNMENT.search(text) and _is_mapping(text):
        raise ConfigError.of(file, f"is YAML, but no manifest; values of a Helm chart? {_RENDERED}")
    return _of_lines(text, file)


def _is_mapping(text: str) -> bool:
    try:
        return isinstance(yaml.load(text, yaml.BaseLoader), dict)
    except (yaml.YAMLError, RecursionError):
        return False


# --- lines -----------------------------------------------------------------------------------------------------------


def _of_lines(text: str, file: str) -> Environment:
    variables: dict[str, str] = {}
    problems = []
    for number, line in _logical_lines(text):
        if not line or line.startswith(("#", ";")):
            continue
        assignment = _LINE.fullmatch(line)
        value = _value(assignment[2]) if assignment else None
        if assignment is None:
            problems.append(f"line {number}: {line!a:.60} is no variable; write NAME=value")
        elif value is None:
            problems.append(f"line {number}: {assignment[1]}: a quote is not closed, or something follows it")
        else:
            variables[assignment[1]] = value
    if problems:
        raise ConfigError.of(file, *problems)
    return Environment(variables=variables)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines without the blanks around them, each with its number; a backslash at the end joins the next one to it."""
    begun, start = "", 0
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        start = start or number
        if line.rstrip("\r").endswith("\\"):
            begun += line.rstrip("\r")[:-1]
        else:
            yield start, (begun + line).strip()
            begun, start = "", 0


def _value(text: str) -> str | None:
    """What stands behind the equals sign, without quotes and without a comment; None if it is not well-formed."""
    found = _VALUE.fullmatch(text)
    if not found:
        return None
    if found["double"] is not None:
        return _ESCAPED.sub(r"\1", found["double"])
    return found["single"] or found["bare"] or ""


# --- manifests -------------------------------------------------------------------------------------------------------


def _of_manifests(text: str, file: str) -> Environment:
    try:
        # The base loader leaves every value as the text that it is.
        documents = list(yaml.load_all(text, yaml.BaseLoader))
    except (yaml.YAMLError, RecursionError) as error:
        told = printable(" ".join(str(error).split()))
        raise ConfigError.of(file, f"not valid YAML: {told}") from error
    containers = [container for document in documents for container in _containers(document)]
    if not containers:
        raise ConfigError.of(file, "has no container; give the manifest of a DaemonSet or Pod, or lines NAME=value")
    return _of_containers([c for c in containers if _programs(c)] or containers, file)


def _of_containers(containers: list[dict[str, Any]], file: str) -> Environment:
    variables: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    problems = []
    for entry in (entry for container in containers for entry in _mappings(container.get("env"))):
        name, value = str(entry.get("name", "")), entry.get("value", "")
        if "valueFrom" in entry or not isinstance(value, str):
            unreadable[name] = _reference(entry.get("valueFrom"))
        elif variables.setdefault(name, value) != value:
            problems.append(f"{name!a:.60}: has different values in several containers; leave only one of these in")
    if problems:
        raise ConfigError.of(file, *problems)
    return Environment(
        variables=variables,
        unreadable={name: where for name, where in unreadable.items() if name not in variables},
        sources=tuple(_reference(e) for c in containers for e in _mappings(c.get("envFrom"))),
        programs=frozenset(program for container in containers for program in _programs(container)),
    )


def _containers(document: object) -> Iterator[dict[str, Any]]:
    """The containers of an object, or of the objects in a list."""
    for item in _mappings(_at(document, ("items",))):
        yield from _containers(item)
    for path in _POD_SPECS:
        yield from _mappings(_at(document, (*path, "containers")))


def _programs(container: dict[str, Any]) -> set[Program]:
    """Which programs a container runs, by its image and by the variables that only one of them has."""
    image = str(container.get("image", "")).rpartition("/")[2]
    names = [str(entry.get("name")) for entry in _mappings(container.get("env"))]
    found = {program for name in names if (program := _PROGRAM_OF.get(name))}
    return found | {program for program in Program if image.startswith(program)}


def _reference(source: object) -> str:
    """Where the value of a variable comes from, in a few words."""
    if not isinstance(source, dict):
        return "somewhere else"
    kind, where = next(((kind, where) for kind, where in source.items() if isinstance(where, dict)), ("", {}))
    return " ".join(str(word) for word in (kind, where.get("fieldPath"), where.get("name"), where.get("key")) if word)


def _at(value: object, path: tuple[str, ...]) -> object:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _mappings(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
