# SPDX-License-Identifier: Apache-2.0
"""Break single lines of the parts that verdicts rest on, and count how many of the breaks the tests notice.

    python benchmarks/mutants.py [--each 10] [--seed 1] [--tests FOLDER] [--sources FOLDER]

Compares two states of the tests by the same broken lines: ``--tests`` of one checkout, ``--sources`` of another. Works
in a copy of the sources. A mutant that survives is printed with its line.
"""

import argparse
import ast
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERDICT = (
    *("verdict", "remarks", "strides", "witnesses", "worst_case_peak", "measured_peak", "predicted_peak"),
    *("memory_history", "attempts"),
)
AREAS = {
    "judge": (["verdict/rules.py"], VERDICT),
    "peaks": (["verdict/measured_peak.py", "verdict/predicted_peak.py", "verdict/worst_case_peak.py"], VERDICT),
    "overlap": (["verdict/overlap.py"], VERDICT),
    "reader": (["results/reader.py"], ("report_page", "commands_report", "budgets", "attempts")),
    "allocator": (["probe/virtual_gpu/allocator.py"], ("allocator", "trace")),
}
SWAPS = {
    **{ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.Is: "is not"},
    **{ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in", ast.Add: "-", ast.Sub: "+", ast.Mult: "+", ast.Div: "*"},
    **{ast.And: "or", ast.Or: "and"},
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "True": "False", "False": "True"}

Edit = tuple[int, str]
"""The line, from 0, and what stands there instead."""


def edits(source: str) -> Iterator[Edit]:
    """Yield every way to break one line."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        parts = []
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            parts = list(zip(operands, operands[1:], node.ops, strict=False))
        elif isinstance(node, ast.BoolOp):
            parts = [(one, other, node.op) for one, other in zip(node.values, node.values[1:], strict=False)]
        elif isinstance(node, ast.BinOp):
            parts = [(node.left, node.right, node.op)]
        for left, right, operator in parts:
            if type(operator) in SWAPS and left.end_lineno == right.lineno:
                line = lines[left.end_lineno - 1].encode()
                between = line[left.end_col_offset : right.col_offset]
                word = SWAPS[type(operator)].encode()
                old = between.strip(b" ()")
                yield left.end_lineno - 1, _spliced(line, left.end_col_offset, right.col_offset, between, old, word)
        if isinstance(node, ast.Name | ast.Constant) and str(getattr(node, "id", getattr(node, "value", ""))) in NAMES:
            word = NAMES[str(getattr(node, "id", getattr(node, "value", "")))]
            yield _replaced(lines, node, word)
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield _replaced(lines, node, repr(node.value + 1))
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) and node.lineno == node.operand.lineno:
            line = lines[node.lineno - 1].encode()
            yield (
                node.lineno - 1,
                (line[: node.col_offset] + line[node.operand.col_offset :]).decode(),
            )
        elif isinstance(node, ast.Return) and node.value is not None and node.lineno == node.end_lineno:
            yield node.lineno - 1, lines[node.lineno - 1][: node.col_offset] + "return None"


def _spliced(line: bytes, start: int, end: int, between: bytes, old: bytes, new: bytes) -> str:
    return (line[:start] + between.replace(old, new, 1) + line[end:]).decode()


def _replaced(lines: list[str], node: ast.expr, word: str) -> Edit:
    line = lines[node.lineno - 1].encode()
    return node.lineno - 1, (line[: node.col_offset] + word.encode() + line[node.end_col_offset :]).decode()


def chosen(files: list[Path], number: int, chance: random.Random) -> list[tuple[Path, Edit]]:
    """Draw so many lines that can be broken, and one way for each."""
    ways: dict[tuple[Path, int], list[Edit]] = {}
    for path in files:
        lines = path.read_text().splitlines()
        for edit in edits(path.read_text()):
            if edit[1] != lines[edit[0]]:
                ways.setdefault((path, edit[0]), []).append(edit)
    places = chance.sample(sorted(ways), min(number, len(ways)))
    return [(place[0], chance.choice(ways[place])) for place in places]


def is_caught(copy: Path, tests: list[Path]) -> bool:
    """Run the tests until one fails; tests that do not end are a failure too."""
    words = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *map(str, tests)]
    try:
        return bool(
            subprocess.run(
                [sys.executable, "-m", "pytest", *words], cwd=copy, capture_output=True, timeout=900, check=False
            ).returncode
        )
    except subprocess.TimeoutExpired:
        return True


def main() -> None:
    """Break the lines one by one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=10, help="lines of each part")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tests", type=Path, default=ROOT / "tests")
    parser.add_argument("--sources", type=Path, default=ROOT)
    options = parser.parse_args()
    total = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in (
            "colocate",
            "conftest.py",
            "pytest.ini",
            "feasibility",
            "fixtures",
            "settings",
            "workloads",
            "docs",
        ):
            source = options.sources / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
        shutil.copytree(options.tests, copy / "tests")
        for area, (names, files) in AREAS.items():
            tests = [path for one in files if (path := copy / "tests" / f"test_{one}.py").exists()]
            if not tests or is_caught(copy, tests):
                parser.error(f"{area}: expected tests that pass before anything is broken, found others: {files}")
            drawn = chosen([copy / "colocate" / name for name in names], options.each, random.Random(options.seed))
            caught = 0
            for path, (number, text) in drawn:
                original = path.read_text()
                lines = original.splitlines()
                before, lines[number] = lines[number], text
                path.write_text("\n".join(lines) + "\n")
                if is_caught(copy, tests):
                    caught += 1
                else:
                    print(f"survived: {path.name}:{number + 1}\n  {before.strip()}\n  {text.strip()}", flush=True)
                path.write_text(original)
            total += caught
            print(f"{area}: {caught} of {len(drawn)} caught", flush=True)
    print(f"{total} caught")


if __name__ == "__main__":
    main()
