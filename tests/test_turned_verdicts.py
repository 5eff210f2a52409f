"""Whole sessions whose verdicts, records and reports something tries to turn, take away or give away."""

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from seen import note
from sessions import EPOCH, ROOT, Session, arguments, pair, plan, run

from colocate.results import journal
from colocate.results.layout import RunDirectory

pytestmark = pytest.mark.slow

RERUNS = """
def pytest_addoption(parser):
    parser.addoption("--reruns", type=int)
"""
TWICE = """
import pytest
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    runtestprotocol(item, nextitem=nextitem, log=True)
    item._initrequest()
    runtestprotocol(item, nextitem=nextitem, log=True)
    return True

def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.xfail)
"""
ONCE = 'test -e "$0" && exec "$@"; touch "$0"; exec "$@" --oom-at=5'


def test_an_option_that_runs_failed_groups_again_is_refused(fake_nvml, tmp_path):
    (tmp_path / "reruns.py").write_text(RERUNS)
    session = with_plugin(tmp_path, plan(tmp_path / "plan.json", [pair()]), "reruns", "--reruns=2")

    assert session.code == 4
    assert "--reruns: expected groups to be judged once, got 2" in session.output
    assert not (tmp_path / "results").exists()


def test_the_first_verdict_stands_whoever_runs_the_group_again(fake_nvml, tmp_path):
    """An out-of-memory that only the first run meets used to become FEASIBLE, with exit code 0.

    Nor does a mark ``xfail``, which used to show the group as not run, with a page of pytest's own words.
    """
    (tmp_path / "twice.py").write_text(TWICE)
    once = {**EPOCH, "command": ["sh", "-c", ONCE, str(tmp_path / "once"), *EPOCH["command"]], "name": "once"}
    session = with_plugin(tmp_path, plan(tmp_path / "plan.json", [pair(once)]), "twice")

    assert session.code == 1
    assert [verdict["outcome"] for verdict in session.verdicts.values()] == ["INFEASIBLE"]
    assert "0 of 1 groups" in session.output
    assert "INFEASIBLE" in session.page
    note("group01 INFEASIBLE, run once")


def test_a_record_that_is_gone_at_the_end_is_no_success(fake_nvml, tmp_path):
    """The second foreground takes the first group's verdict away; that used to be exit code 0 and "2 of 2"."""
    take = ["sh", "-c", f'rm {tmp_path}/results/run_*/*_001/verdict.json; exec "$@"', "sh", *EPOCH["command"]]
    session = run(plan(tmp_path / "plan.json", [pair(), pair({**EPOCH, "command": take})]), tmp_path)

    assert session.code == 1
    assert "lost: group01: judged FEASIBLE, and then verdict.json of its record was gone" in session.output
    assert "1 of 2 groups" in session.output


def test_a_reader_that_goes_away_costs_neither_page_nor_run_and_secrets_stay_in_the_process(fake_nvml, tmp_path):
    """With ``python -O`` as well. The value of a plan's ``env`` used to be in run.json and in archives.

    In a folder whose name is no UTF-8, where the record could not be written.
    """
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    secret = {**EPOCH, "env": {"WANDB_API_KEY": "s3cr3t"}}
    path = plan(folder / "plan.json", [pair(secret), pair(secret)])
    python, *words = arguments(path, folder, f"--archive={folder / 'all.jsonl'}")
    environment = {**os.environ, "COLUMNS": "100"}
    with subprocess.Popen(
        [python, "-O", *words], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        session = Session(process.wait(600), "", folder)

    assert session.code == 0
    assert session.junit == {"group01": "passed", "group02": "passed"}
    assert "group02" in session.page
    kept = [file for file in folder.rglob("*") if file.is_file() and file.name != "plan.json"]
    assert [file.name for file in kept if b"s3cr3t" in file.read_bytes()] == []
    assert "WANDB_API_KEY" in (session.run / "run.json").read_text()


def test_a_program_that_was_started_without_standard_streams_gets_some():
    """`colocate run plan.json >&-` ended in an AttributeError, and so did pytest with an installed colocate."""
    program = (
        "from colocate.files import open_closed_streams as o; o(); import os; print('x'); os.fstat(1); os.fstat(2)"
    )

    assert subprocess.run(["sh", "-c", f'{sys.executable} -c "{program}" >&- 2>&- <&-'], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("what", ["file", "beside"])
def test_reports_have_a_folder_of_their_own_or_nothing_starts(what, fake_nvml, tmp_path):
    """A file in its place used to be an internal error; two runs of one second wrote one report."""
    path = plan(tmp_path / "plan.json", [pair()])
    if what == "file":
        (tmp_path / "reports").write_text("x")
        session = run(path, tmp_path)

        assert session.code == 4
        assert "could not write the folder" in session.output
        assert not (tmp_path / "results").exists()
    else:
        now = datetime(2026, 1, 2, 3, 4, 5)
        runs = [RunDirectory.new(tmp_path / f"results{n}", now, reports=tmp_path / "reports") for n in range(2)]
        assert len({run.name for run in runs}) == 2
        assert {run.name for run in runs} == {folder.name for folder in (tmp_path / "reports").iterdir()}


def test_a_line_behind_half_a_line_is_read(tmp_path):
    """It used to be glued to what a power loss had left, and lost."""
    journal.append(tmp_path, "started", groups=["a"], estimates={})
    with (tmp_path / journal.NAME).open("ab") as file:
        file.write(b'{"at": "2026", "event": "gro')
    journal.append(tmp_path, "group", record={"group": "a", "outcome": "NOT RUN"}, text="")

    assert list(journal.read(tmp_path).results) == ["a"]


def test_a_pipe_in_the_journals_place_is_neither_waited_for_nor_read(tmp_path):
    os.mkfifo(tmp_path / journal.NAME)

    with pytest.raises(OSError, match=r"no file|No such device"):
        journal.append(tmp_path, "ended")
    assert journal.read(tmp_path).results == {}


def with_plugin(folder: Path, path: Path, name: str, *more: str) -> Session:
    """A session with one more plugin of pytest's, from a file beside the plan."""
    inside = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", inside)
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        return run(path, folder, "-p", name, *more)
