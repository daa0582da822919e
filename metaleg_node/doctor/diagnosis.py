"""What a check is, what it finds, and how all of them are made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from metaleg_node.core.problems import Severity
from metaleg_node.doctor.facts import Facts, NotSeenError
from metaleg_node.kernel.errors import KernelError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found: what was `seen`, with the value and where it stands; what `follows` from it; what to do, a
    command where there is one."""

    seen: str
    follows: str
    mend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check. `code` is for good, and a heading of docs/doctor.md; `title` says what is wrong when it finds
    something; `look` yields what it finds, and raises NotSeenError or KernelError where it cannot tell. What sees
    counters grow is made `late`, so that the other checks are what it waits for."""

    code: str
    severity: Severity
    title: str
    look: Callable[[Facts], Iterable[Finding]]
    late: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What came of the checks. `passed` found nothing, `unseen` could not be made, each with the reason, `ignored` were
    not to be made."""

    findings: tuple[tuple[Check, Finding], ...]
    passed: tuple[Check, ...]
    unseen: tuple[tuple[Check, str], ...]
    ignored: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing worse than a note was found."""
        return all(check.severity is Severity.NOTE for check, _ in self.findings)


def diagnose(checks: Iterable[Check], facts: Facts, ignored: Collection[str] = ()) -> Diagnosis:
    """Makes checks; the worst findings come first, and otherwise all in the order of their codes."""
    findings: list[tuple[Check, Finding]] = []
    passed: list[Check] = []
    unseen: list[tuple[Check, str]] = []
    left_out: list[Check] = []
    for check in sorted(checks, key=lambda check: check.late):
        if check.code in ignored:
            left_out.append(check)
            continue
        try:
            found = [*check.look(facts)]
        except (NotSeenError, KernelError, OSError) as error:
            unseen.append((check, str(error)))
        except Exception as error:
            # What others have on a host may be anything; the other checks are still worth their while.
            log.debug("%s", check.code, exc_info=True)
            unseen.append((check, f"a fault of this program: {type(error).__name__}: {error}"))
        else:
            findings += ((check, one) for one in found)
            passed += [] if found else [check]
    findings.sort(key=lambda pair: (-pair[0].severity, pair[0].code))
    passed.sort(key=lambda check: check.code)
    unseen.sort(key=lambda pair: pair[0].code)
    return Diagnosis(findings=tuple(findings), passed=tuple(passed), unseen=tuple(unseen), ignored=tuple(left_out))


def chosen(checks: Iterable[Check], prefix: str) -> Iterator[Check]:
    """Those whose code begins so; `2` and `ml-2` are short for `ML-2`."""
    word = prefix.upper()
    return (check for check in checks if check.code.startswith(word if word.startswith("ML") else f"ML-{word}"))
