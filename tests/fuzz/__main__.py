"""`./dev fuzz [SECONDS [SEED]]`: exit status 1 when something was found. The same seed makes the same inputs."""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from pathlib import Path

from tests.fuzz.run import Result, one
from tests.fuzz.targets import TARGETS


def main(seconds: float, seed: int) -> int:
    warnings.simplefilter("ignore")
    result = Result()
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="metaleg-node-fuzz-") as directory:
        while time.monotonic() < end:
            for name in (name for name, target in TARGETS.items() for _ in range(target.share)):
                known = len(result.found)
                one(name, f"{seed}-{result.inputs[name]}", Path(directory), result)
                for text in list(result.found.values())[known:]:
                    print(f"found: {text}", flush=True)
    for name in TARGETS:
        print(f"{name}: {result.inputs[name]} inputs, {result.refused[name]} refused")
    print(f"{result.inputs.total()} inputs with seed {seed}, {len(result.found)} defects")
    return 1 if result.found else 0


if __name__ == "__main__":
    arguments = [*sys.argv[1:], *("60", "1")[len(sys.argv) - 1 :]]
    sys.exit(main(float(arguments[0]), int(arguments[1])))
