"""`python -m tests.vm SUITE [pytest arguments]`: runs tests in the virtual machine of a Debian release."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests import patience
from tests.package.archive import SUITES, Archive, Unavailable, default_cache
from tests.vm.machine import Machine, MachineError

CHOSEN = Path(__file__).with_name("chosen.txt")
PATIENCE = 15
"""By how much limits of time are stretched: tests were seen to take 8 to 15 times as long."""
EX_USAGE, EX_UNAVAILABLE = 64, 69
# Packages of a stable distribution warn about what came after them.
_OPTIONS = ("-p", "no:cacheprovider", "-W", "default::DeprecationWarning")


def chosen() -> list[str]:
    """The arguments that name the tests which every machine runs."""
    lines = (line.partition("#")[0].strip() for line in CHOSEN.read_text().splitlines())
    return [line for line in lines if line]


def main(suite: str, *arguments: str) -> int:
    if suite not in SUITES:
        print(f"there is no machine for {suite}: take one of {', '.join(SUITES)}", file=sys.stderr)
        return EX_USAGE
    environment = {patience.VARIABLE: os.environ.get(patience.VARIABLE, str(PATIENCE)), patience.MACHINE: suite}
    try:
        machine = Machine(Archive(default_cache(), suite))
        machine.prepare()
        colour = "--color=yes" if sys.stdout.isatty() else "--color=no"
        return machine.run([*_OPTIONS, colour, *(arguments or chosen())], environment)
    except Unavailable as error:
        print(f"THE KERNEL OF {suite.upper()} IS NOT TESTED HERE: {error}", file=sys.stderr)
        return EX_UNAVAILABLE
    except MachineError as error:
        print(f"the virtual machine with Debian {suite} failed: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
