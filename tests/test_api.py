"""The public API: what `import colocate` offers, at work as its page shows it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import builders
import pytest
from groups import group, training

import colocate
from colocate.results.layout import RunDirectory
from colocate.results.record import write_record

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/how-to/python.md").read_text()


def test_every_public_name_is_there_and_the_page_shows_no_other() -> None:
    assert [name for name in colocate.__all__ if getattr(colocate, name, None) is None] == []
    assert set(re.findall(r"colocate\.(\w+)", PAGE.replace("colocate.errors", ""))) <= set(colocate.__all__)
    assert set(colocate.__all__) <= set(dir(colocate))
    with pytest.raises(AttributeError, match="no attribute 'load_plans'"):
        colocate.load_plans  # noqa: B018


def test_importing_it_loads_nothing_else() -> None:
    """A notebook's first line must not wait for pydantic, pandas or pytest."""
    look = "import colocate, sys; print([m for m in ('pydantic', 'pandas', 'pytest', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, cwd=ROOT).stdout == "[]\n"


@pytest.mark.slow
def test_the_example_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    program = (ROOT / "tests/programs/linear.py").read_text()
    (tmp_path / "train.py").write_text(f"import sys\nsys.argv[1:] = []\n{program}")
    alone = {"mode": "default", "command": [sys.executable, "train.py", "--batch-size", "64"]}
    (tmp_path / "plan.json").write_text(json.dumps({"experiments": [alone]}))
    run = RunDirectory(tmp_path / "results/run_20261124_053000")
    (tmp_path / "results/run_20261124_053000").mkdir(parents=True)
    folder = run.group("mnist", 1, parallel=True).create()
    write_record(folder, group(training("mnist"), training("load")), builders.evidence(), [], run.name)

    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(compile(example.replace('"python"', repr(sys.executable)), "python.md", "exec"), {})

    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first.startswith("fits PeakRange(")
    assert re.fullmatch(r"group\w+ FEASIBLE \d+", second)
