"""Measures the processor time of starting: an import, ``colocate --help``, and collecting a plan with pytest.

Processor time, since other work on the machine moves it little; and beside each its ratio to an empty interpreter.
Usage: python benchmarks/start_up.py
"""

import os
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMES = 3

STARTS = {
    "an empty interpreter": ["-c", ""],
    "import colocate": ["-c", "import colocate"],
    "colocate --help": ["-m", "colocate", "--help"],
    "pytest feasibility --collect-only": [
        "-m",
        "pytest",
        "feasibility",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
    ],
}


def processor_s(arguments: list[str]) -> float:
    """The least processor time of a few starts: the first may compile."""
    taken = []
    for _ in range(TIMES):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


def main() -> None:
    """Print one line per start."""
    empty_s = processor_s(STARTS["an empty interpreter"])
    for name, arguments in STARTS.items():
        taken_s = processor_s(arguments)
        print(f"{name:36} {taken_s:6.2f} s  {taken_s / empty_s:5.1f} times an empty interpreter")


if __name__ == "__main__":
    main()
