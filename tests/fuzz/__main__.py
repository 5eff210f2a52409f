"""Fuzz one target with atheris.

    python -m fuzz TARGET FOLDER [--runs RUN_DIRECTORY ...] [-- libFuzzer options]

``FOLDER`` keeps the corpus and one example of everything that was found, named by its place; begun again, it goes on
from there. See CONTRIBUTING.md.
"""

import argparse
import sys
import tempfile
import traceback
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["colocate"]):
    from fuzz.targets import TARGETS, Target

from fuzz import corpus
from fuzz.mutation import mutated

_KEPT_AS_IT_IS = ("trace",)


def _mutate(data: bytes, largest: int, seed: int) -> bytes:
    """Two of three times a document near this one, else bytes near these."""
    found = mutated(data, seed) if seed % 3 else data
    return atheris.Mutate(data, largest) if found == data or len(found) > largest else found


class Findings:
    """Keeps the first bytes that end in each place of the code, and goes on: one mistake hides no other."""

    def __init__(self, target: Target, folder: Path, work: Path) -> None:
        self._target = target
        self._folder = folder
        self._work = work

    def __call__(self, data: bytes) -> None:
        """Called by the fuzzer."""
        try:
            self._target(data, self._work)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            ours = [one for one in traceback.extract_tb(error.__traceback__) if "/colocate/" in one.filename] or [frame]
            place = f"{type(error).__name__}-{Path(ours[-1].filename).stem}-{ours[-1].name}-{ours[-1].lineno}"
            example = self._folder / place
            if not example.exists():
                example.write_bytes(data)
                example.with_suffix(".txt").write_text(traceback.format_exc())
                print(f"FOUND {place}: {error}"[:300], flush=True)


def main() -> None:
    """Until libFuzzer's options end it, or something is found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    known, others = parser.parse_known_args()
    folder = known.folder / known.target
    corpus.write(folder / "corpus", known.target, known.runs)
    (folder / "found").mkdir(exist_ok=True)
    options = [
        f"-artifact_prefix={folder}/found/",
        "-timeout=10",
        "-rss_limit_mb=2000",
        f"-max_len={corpus.LARGEST_BYTES}",
    ]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as work:
        more = {} if known.target in _KEPT_AS_IT_IS else {"custom_mutator": _mutate}
        arguments = [sys.argv[0], *options, *(word for word in others if word != "--"), str(folder / "corpus")]
        atheris.Setup(arguments, Findings(TARGETS[known.target], folder / "found", Path(work)), **more)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
