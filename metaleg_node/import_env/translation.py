"""From environment variables to the text of a configuration file that means the same.

Only keys that differ from metaleg-node's defaults are written. What has no equivalent is told in comments; what cannot
be understood is a problem, and left out of the text.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from metaleg_node.configuration import config as configuration
from metaleg_node.configuration.config import Config, ConfigError, Problem
from metaleg_node.configuration.settings import Many, Setting, leaves, nearest
from metaleg_node.import_env.variables import (
    DEFAULTS,
    PREFIXES,
    SERVICE_LINK,
    VARIABLES,
    Default,
    NotTakenOver,
    Program,
    Raw,
    Variable,
)

_WIDTH = 118
_LONGEST_KEY = len("local_endpoints_only = ")
_SHOWN = 60
_INTERVAL = "reconcile.interval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Variables and their values. `unreadable` are variables whose value is not known here, each with where it comes
    from, `sources` where further ones come from; `programs` are those that something else than their variables tells
    of."""

    variables: Mapping[str, str]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    programs: frozenset[Program] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A value for a key; `variable` and `text` are empty where a program does so by default."""

    variable: str = ""
    text: str = ""
    origin: str
    remark: str
    value: Raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Translated:
    """A configuration's text, and what is wrong with the variables that are not in it."""

    text: str
    problems: tuple[Problem, ...]


def translate(environment: Environment, *, file: str) -> Translated:
    """`file` tells where the variables are from."""
    return _Translation(environment, file).result()


class _Translation:
    """Gathers what the variables say, by key, with remarks and problems; `result` puts it together."""

    def __init__(self, environment: Environment, file: str) -> None:
        self._file = file
        # For all three programs an empty variable is as good as none.
        self._given = {name: text.strip() for name, text in environment.variables.items() if text.strip()}
        self._unreadable = environment.unreadable
        known = {v.program for v in VARIABLES if v.name in self._given or v.name in self._unreadable}
        self._programs = [program for program in Program if program in known | environment.programs]
        self._found: dict[str, list[_Found]] = {}
        self._already_default: list[str] = []
        self._remarks = [f"the variables of {_ascii(source)}: cannot be read here" for source in environment.sources]
        self._problems: list[Problem] = []

    def result(self) -> Translated:
        for variable in VARIABLES:
            self._take(variable)
        for default in DEFAULTS:
            self._take_default(default)
        self._remark_on_unknown()
        values = {key: value for key, found in self._found.items() if (value := self._choose(key, found)) is not None}
        self._fit(values)
        tables = self._tables(values)
        self._remarks += [f"{name}: cannot be translated" for name in dict.fromkeys(one.key for one in self._problems)]
        text = "\n".join([*self._head(), *tables, *self._tail(), ""])
        return Translated(text=text, problems=tuple(self._problems))

    # --- gathering ---------------------------------------------------------------------------------------------------

    def _take(self, variable: Variable) -> None:
        if variable.name in self._unreadable:
            advice = f"; set {variable.key} where its default will not do" if variable.key else ""
            source = _ascii(self._unreadable[variable.name])
            self._remarks.append(f"{variable.name}: cannot be read here, it comes from {source}{advice}")
        elif variable.name not in self._given:
            return
        elif winner := next((name for name in variable.unread_with if name in self._given), ""):
            self._remarks.append(f"{variable.name}: {variable.program} does not read it beside {winner}")
        elif _is_unicode(text := self._given[variable.name]):
            self._read(variable, text)
        else:
            self._blame(variable.name, "is not UTF-8")

    def _read(self, variable: Variable, text: str) -> None:
        try:
            value = variable.reader.read(text)
            if variable.key:
                _SETTINGS[variable.key].kind.read(value)
        except NotTakenOver as reason:
            self._remarks.append(f"{variable.name}: {reason}")
        except ValueError as error:
            hint = f"; {error}" if str(error) else ""
            allowed = variable.reader.allowed or _SETTINGS[variable.key].kind.allowed
            self._blame(variable.name, f"must be {allowed}{hint}")
        else:
            origin = f"from {variable.name}"
            found = _Found(variable=variable.name, text=text, origin=origin, remark=variable.remark, value=value)
            self._note(variable.key, found, variable.name)

    def _take_default(self, default: Default) -> None:
        set_at_all = any(name in self._given or name in self._unreadable for name in default.variables)
        if set_at_all or default.program not in self._programs:
            return
        found = _Found(origin=f"{default.program}'s default", remark=default.remark, value=default.value)
        self._note(default.key, found, f"{default.program} without {' or '.join(default.variables)}")

    def _note(self, key: str, found: _Found, about: str) -> None:
        """A value for a key; without a key, a remark about what is not set here."""
        if key:
            self._found.setdefault(key, []).append(found)
        else:
            self._remarks.append(f"{about}: {found.remark}")

    def _remark_on_unknown(self) -> None:
        for name in sorted(self._given.keys() | self._unreadable.keys()):
            if name.startswith(PREFIXES) and name not in _NAMES and not SERVICE_LINK.fullmatch(name):
                guess = nearest(name, _NAMES)
                hint = f"; did you mean {guess}?" if guess else ""
                self._remarks.append(f"{_ascii(name)}: not understood, none of the three programs has it{hint}")

    def _choose(self, key: str, found: list[_Found]) -> Raw | None:
        """The value of a key that perhaps several variables set; None where it is metaleg-node's default."""
        setting = _SETTINGS[key]
        if isinstance(setting.kind, Many):
            value: Raw = list(dict.fromkeys(item for one in found if isinstance(one.value, list) for item in one.value))
        elif key == _INTERVAL:
            value = min((one.value for one in found), key=lambda raw: setting.kind.read(raw) or float("inf"))
        else:
            value = found[0].value
            for other in found[1:]:
                if setting.kind.read(other.value) != setting.kind.read(value):
                    self._blame(other.variable, f"contradicts {found[0].variable}, which sets {key}; leave out one")
        if setting.kind.read(value) != setting.default_value:
            return value
        self._already_default += [one.variable for one in found]
        return None

    def _blame(self, name: str, message: str) -> None:
        """Once for a variable, though it may set several keys."""
        if any(problem.key == name for problem in self._problems):
            return
        self._problems.append(Problem(file=self._file, key=name, value=_shown(self._given[name]), message=message))

    # --- putting together --------------------------------------------------------------------------------------------

    def _fit(self, values: dict[str, Raw]) -> None:
        """Takes out of the values what does not fit together, told of variables."""
        while True:
            try:
                configuration.parse("\n".join(self._tables(values)), file=self._file)
                return
            except ConfigError as error:
                self._problems += map(self._of_variable, error.problems)
                blamed = {key for one in error.problems for key in (one.key, *one.message.split()) if key in values}
                if not blamed:
                    raise
            for key in blamed:
                del values[key]

    def _of_variable(self, problem: Problem) -> Problem:
        """What is wrong with a key, told of the variable that set it or the other key that the message names."""
        keys = (problem.key, *problem.message.split())
        blamed = next((one for key in keys for one in self._found.get(key, ()) if one.variable), None)
        if blamed is None:
            return problem
        message = f"{problem.key} = {problem.value} {problem.message}"
        return Problem(file=self._file, key=blamed.variable, value=_shown(blamed.text), message=message)

    def _head(self) -> Iterator[str]:
        whose = " and ".join(self._programs) or "programs that metaleg-node replaces"
        yield f"# What the environment variables of {whose} mean to metaleg-node."
        yield "# A key that is not here has its default. How to change over: docs/migration.md"

    def _tables(self, values: Mapping[str, Raw]) -> Iterator[str]:
        last = ""
        for key, setting in _SETTINGS.items():
            if key in values:
                table, _, name = key.rpartition(".")
                if table != last:
                    yield from ("", f"[{table}]")
                last = table
                yield from _comment(_explanation(self._found[key]))
                yield f"{name} = {_toml(values[key], setting)}"

    def _tail(self) -> Iterator[str]:
        remarks = list(self._remarks)
        if not self._programs:
            remarks.append("no variable tells which program it is for; " + "; ".join(_hints()))
        if self._already_default:
            remarks.append(f"as it is by default: {', '.join(dict.fromkeys(self._already_default))}")
        if remarks:
            yield from ("", "# Not set here:")
            for remark in remarks:
                yield from _comment(remark, bullet="- ")


# --- the settings table ----------------------------------------------------------------------------------------------


_SETTINGS = {leaf.key: leaf.setting for leaf in leaves(Config) if not leaf.many}
_NAMES = [variable.name for variable in VARIABLES]


def _hints() -> Iterator[str]:
    """What each program does without any variable."""
    for default in DEFAULTS:
        if default.key:
            value = _toml(default.value, _SETTINGS[default.key])
            yield f"for {default.program} set {default.key} = {value}"


def _explanation(found: list[_Found]) -> str:
    """The comment above a key."""
    notes = list(dict.fromkeys(one.remark for one in found if one.remark))
    origin = ", ".join(one.origin for one in found)
    return f"{origin}: {'; '.join(notes)}" if notes else origin


# --- text ------------------------------------------------------------------------------------------------------------


def _toml(value: Raw, setting: Setting) -> str:
    if isinstance(value, list):
        items = [_quoted(item) for item in value]
        line = f"[{', '.join(items)}]"
        if len(line) <= _WIDTH - _LONGEST_KEY:
            return line
        return "\n".join(["[", *(f"    {item}," for item in items), "]"])
    if isinstance(value, str):
        return _quoted(value)
    return f"{value:#x}" if setting.kind.hexadecimal else str(value).lower()


def _quoted(text: str) -> str:
    """A TOML string in ASCII, so that it is the same in every character set of a terminal."""
    escaped = re.sub(r'["\\]', r"\\\g<0>", text)
    return '"' + re.sub(r"[^ -~]", lambda char: f"\\U{ord(char[0]):08x}", escaped) + '"'


def _comment(text: str, *, bullet: str = "") -> list[str]:
    indent = " " * len(bullet)
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"# {bullet}", subsequent_indent=f"# {indent}", break_on_hyphens=False
    )


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _ascii(text: str) -> str:
    return _shown(text)[1:-1]


def _shown(text: str) -> str:
    """A text for a message: short, on one line, in printable ASCII."""
    return ascii(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...")
