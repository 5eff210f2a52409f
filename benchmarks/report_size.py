"""How large the page of many groups is, and how long it takes to build: python benchmarks/report_size.py RUN.

The groups of a finished run are repeated under new names until there are enough of them; their folders are links.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from colocate.report.html.page import Report, document
from colocate.results import journal
from colocate.results.reader import read_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a finished run directory")
    parser.add_argument("--groups", type=int, nargs="+", default=[12, 100, 101, 300, 1000])
    parser.add_argument("--keep", type=Path, help="folder in which the pages stay")
    options = parser.parse_args()
    print("| groups | page, MB | built, s |\n| --- | --- | --- |")
    for num_groups in options.groups:
        with tempfile.TemporaryDirectory() as folder:
            run = repeated(options.run.resolve(), Path(folder) / "run_20261124_053000", num_groups)
            started_t = time.perf_counter()
            page = document(Report.of([read_run(run)], run))
            seconds = time.perf_counter() - started_t
            print(f"| {num_groups} | {len(page.encode()) / 1e6:.2f} | {seconds:.1f} |", flush=True)
            if options.keep is not None:
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / f"report_{num_groups}.html").write_text(page, encoding="utf-8")


def repeated(source: Path, run: Path, num_groups: int) -> Path:
    """A run of so many groups, made of those of another."""
    rows = [row for row in read_run(source).results if row.folder is not None]
    run.mkdir()
    info = json.loads((source / "run.json").read_text())
    names = [f"group{number:04}" for number in range(1, num_groups + 1)]
    info["plan"] |= {"groups": names, "needed": num_groups}
    (run / "run.json").write_text(json.dumps(info))
    for place, name in enumerate(names):
        row = rows[place % len(rows)]
        assert row.folder is not None
        copy(row.folder.path, run / name, name)
        journal.append(run, "group", record={**row.to_json(), "group": name, "number": place + 1, "directory": name})
    journal.append(run, "ended")
    return run


def copy(source: Path, folder: Path, name: str) -> None:
    """The same group under another name; its large files are links."""
    folder.mkdir()
    for path in source.iterdir():
        if path.name != "experiment.json":
            (folder / path.name).symlink_to(path)
    experiment = json.loads((source / "experiment.json").read_text())
    experiment["group"]["id"] = name
    (folder / "experiment.json").write_text(json.dumps(experiment))


if __name__ == "__main__":
    main()
