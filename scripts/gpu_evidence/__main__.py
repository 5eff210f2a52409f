# SPDX-License-Identifier: Apache-2.0
"""The command line: finds or installs what is missing, then does as much as the time allows."""

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# What the harness itself imports outside of pytest. The trainings' packages, PyTorch among them, are the machine's own.
NEEDED = ("pydantic", "pynvml", "pandas", "torch")


def main() -> int:
    """Exit code 0: all is done; 3: there is more to do, run it again; 1: it could not go on; 2: wrong arguments."""
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:2] == ["calibrate"]:
        from gpu_evidence import calibration

        return calibration.main(sys.argv[2:])
    options = _parser().parse_args()
    missing = _missing(options.wheels, options.work)
    if missing:
        print(f"gpu-evidence: missing: {', '.join(missing)}; bring them as wheels: --wheels DIR", file=sys.stderr)
        return 2
    from gpu_evidence.session import Session, UnusableError

    try:
        return Session(options, ROOT).run()
    except UnusableError as error:
        print(f"gpu-evidence: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu-evidence",
        description="Measure on a GPU what this project claims, in pieces that fit into a few minutes each.",
        epilog="Run it again with the same arguments until its exit code is 0; what is done is not done again.",
    )
    add = parser.add_argument
    add("--minutes", type=float, default=9.5, help="how long this call may take (9.5)")
    add("--device", choices=("auto", "nvidia", "virtual"), default="auto", help="as in colocate run (auto)")
    add("--gpu", default="8GB", help="the constrained GPU (8GB)")
    add("--plan", type=Path, default=ROOT / "settings" / "parallel_feasibility_test.json", help="the plan")
    add(
        "--work",
        type=Path,
        default=ROOT / "results" / "gpu-evidence",
        help="records of all calls",
    )
    add("--out", type=Path, help="where the evidence goes (docs/evidence, or results/ where nothing was measured)")
    add("--wheels", type=Path, metavar="DIR", help="install what is missing from this folder, without a network")
    add(
        "--only",
        action="append",
        default=[],
        metavar="UNIT",
        help="only units whose name begins so; may be repeated",
    )
    add("--steps", type=int, default=40, help="steps of each phase in a shortened training (40)")
    add("--rounds", type=int, default=5, help="rounds of the interleaved overhead runs (5)")
    add("--block", type=float, default=4.0, help="seconds of a block with or without the sampler (4)")
    add("--list", action="store_true", help="say what is done and what is left; run nothing")
    add("--write", action="store_true", help="only write the evidence of what is done")
    return parser


def _missing(wheels: Path | None, work: Path) -> list[str]:
    """The packages that are not here, after those in the folder of wheels were made importable."""
    if not _absent() or wheels is None:
        return _absent()
    packages = work.resolve() / "packages"
    if not packages.exists():
        found = sorted(str(wheel) for wheel in wheels.glob("*.whl"))
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "--disable-pip-version-check", "--target", str(packages), *found], check=True)
    sys.path.insert(0, str(packages))
    # The trainings and the victim of the kill are processes of their own.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(packages), os.environ.get("PYTHONPATH")]))
    importlib.invalidate_caches()
    return _absent()


def _absent() -> list[str]:
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


if __name__ == "__main__":
    sys.exit(main())
