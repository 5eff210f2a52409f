"""A run that was ended at any point is taken up again: nothing lost, nothing run twice, nothing left alive."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sessions import EPOCH, ROOT, Session, alive_below, arguments, pair, plan, run, simulated_machine, stand_in
from waiting import wait_until

from colocate.cli.main import main
from colocate.device.lock import locked
from colocate.files import read_json
from colocate.harness.resume import MOST_REPORTED, Decision, reported, take_up
from colocate.report import status_line
from colocate.results import progress_file
from colocate.results.layout import GroupDirectory, RunDirectory
from colocate.results.reader import group_results

FAILS = stand_in("--hold", "700", "--steps", "10", "--probe", "--fail-at", "3")
GROUPS = [pair(), pair(FAILS)]


def resumed(path: Path, folder: Path, *more: str) -> Session:
    return run(path, folder, "--resume", *more)


def lines(session: Session) -> list[str]:
    return [line.removeprefix("resume: ") for line in session.output.splitlines() if line.startswith("resume: ")]


def edited(path: Path, change: Any) -> Path:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


@pytest.fixture(scope="module")
def finished(fake_nvml_library, tmp_path_factory):
    """A run of two groups that has ended well, for tests that each take a copy of it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch, simulated_machine(folder, fake_nvml_library, patch) as fake:
        fake.add_gpu()
        path = plan(folder / "plan.json", GROUPS)
        yield path, run(path, folder)


@pytest.fixture
def copy(finished, tmp_path):
    """The plan and a folder with that run in it."""
    path, session = finished
    shutil.copytree(session.folder / "results", tmp_path / "results")
    beside = path.with_name(f"{tmp_path.name}.json")  # where a plan lies decides where its commands start
    return Path(shutil.copy(path, beside)), tmp_path


@pytest.mark.slow
def test_finished_groups_are_kept_with_their_verdicts_everywhere(copy):
    path, folder = copy
    before = {file: file.stat().st_mtime_ns for file in folder.glob("results/*/*/*")}
    session = resumed(path, folder, "-n1")

    assert session.code == 1
    assert lines(session) == [
        "group01 reused: FEASIBLE, and nothing changed since",
        "group02 reused: INFEASIBLE, and nothing changed since",
    ]
    assert session.junit == {"group01": "passed", "group02": "failure"}
    assert "group01 FEASIBLE (measured) peak 2200 MiB, headroom 5300 MiB, reused" in session.output
    assert f"reused from {session.run.name}" in session.page
    assert (session.run / "summary.csv").read_text().count(f"reused from {session.run.name}") == 2
    assert {file: file.stat().st_mtime_ns for file in folder.glob("results/*/*/*")} == before
    assert main(["verify", str(session.run)]) == 0


def test_of_very_many_decisions_that_are_alike_one_line_is_told():
    """Ten thousand kept groups used to be ten thousand lines before the first one ran."""
    decisions = [Decision(f"group{number:02}", "it was never started") for number in range(1, MOST_REPORTED + 3)]
    decisions[1] = Decision("group02", "its settings changed")
    assert reported(decisions) == [
        "21 groups from group01 to group22 run: it was never started",
        "group02 runs: its settings changed",
    ]
    assert reported(decisions[:5]) == [str(decision) for decision in decisions[:5]]


def never_had_a_background(document):
    document["group"]["content_hash"] = "another"
    document["evidence"]["background"] = None


def has_an_old_torch(document):
    document["evidence"]["versions"]["torch"] = "1.0"


def interrupt(group):
    group.verdict.unlink()
    group.experiment.unlink()


def restart(group):
    interrupt(group)
    edited(group.run.record, lambda it: it.update(boot_id="another"))


CHANGES: dict[str, tuple[str, Callable[[GroupDirectory], object]]] = {
    "a setting": ("its settings changed", lambda group: None),
    "a background that it did not have": (
        "its settings changed: stand_in has ",
        lambda group: edited(group.experiment, never_had_a_background),
    ),
    "a version": ("versions changed: torch 1.0 to", lambda group: edited(group.experiment, has_an_old_torch)),
    "a record cut short": (
        "its record is damaged",
        lambda group: group.trace.write_text("elapsed_s,used_bytes\n1.0,2\n"),
    ),
    "a verdict that was tampered with": (
        "its verdict does not follow from its record",
        lambda group: edited(group.verdict, lambda it: it.update(peak_bytes=1)),
    ),
    "a verdict cut short": ("its record is damaged", lambda group: group.verdict.write_text('{"outcome": "FEAS')),
    "no verdict and half a record": ("it was interrupted", interrupt),
    "a restart of the machine in between": ("it was interrupted, and the machine was started anew since", restart),
    "nothing of it": ("it was never started", lambda group: shutil.rmtree(group.path)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("why", "change"), CHANGES.values(), ids=CHANGES)
def test_what_no_longer_holds_is_explained(copy, why, change):
    """Without a session: the same decisions as --resume-dry-run prints."""
    from colocate.harness.resume import decide, find_run
    from colocate.plan.plan import load_plan

    path, folder = copy
    found = find_run(folder / "results", "", "stand-ins")
    change(GroupDirectory(found.path / "stand_in_parallel_001"))
    if why == "its settings changed":
        edited(path, lambda it: it["limits"].update(stall_s=100))
    decisions = decide(found, load_plan(path).groups, ())

    assert decisions[0].reused is None
    assert decisions[0].why.startswith(why)
    assert why == "its settings changed" or decisions[1].reused is not None


@pytest.mark.slow
def test_a_changed_group_runs_again_beside_its_old_record(copy):
    path, folder = copy
    edited(path, lambda it: it["experiments"][1].update(foreground=EPOCH))
    explained = run(path, folder, "--resume-dry-run")
    session = resumed(path, folder)

    assert explained.code == 0
    assert "group02 runs: its settings changed: stand_in has nothing in place of --fail-at\n" in explained.output
    assert session.junit == {"group01": "passed", "group02": "passed"}
    assert (session.run / "stand_in_parallel_002_attempt2/verdict.json").exists()
    assert (session.run / "stand_in_parallel_002/verdict.json").exists()
    assert len((session.run / "summary.csv").read_text().splitlines()) == 3
    assert read_json(session.run / "run.json")["sessions"][0]["reused"] == ["group01"]
    assert main(["next", str(session.run)]) == 0
    recommended = read_json(session.run / "next.json")["experiments"]
    assert [one["foreground"]["command"] for one in recommended] == [EPOCH["command"]] * 2, "what was judged"


@pytest.mark.slow
def test_a_record_that_only_lacks_its_verdict_gets_it(copy):
    path, folder = copy
    (verdict,) = folder.glob("results/*/stand_in_parallel_001/verdict.json")
    verdict.unlink()
    session = resumed(path, folder)

    assert lines(session)[0] == "stand_in_parallel_001: judged from its record, which was whole"
    assert lines(session)[1] == "group01 reused: FEASIBLE, and nothing changed since"
    assert verdict.exists()


@pytest.mark.slow
def test_two_sessions_cannot_be_at_one_run(copy):
    path, folder = copy
    (found,) = folder.glob("results/run_*")
    with RunDirectory(found).locked():
        session = resumed(path, folder)

    assert session.code == 4
    assert f"expected a run that nobody else is at, found it held by pid {os.getpid()}" in session.output


@pytest.mark.slow
def test_a_second_run_on_the_same_gpu_says_who_holds_it_or_waits(fake_nvml, tmp_path):
    path = plan(tmp_path / "plan.json", GROUPS[:1])
    with ExitStack() as held:
        held.enter_context(locked(fake_nvml.uuid(), "group07 of another run"))
        refused = run(path, tmp_path / "first", "--device=nvidia")
        with subprocess.Popen(arguments(path, tmp_path, "--wait=600"), cwd=ROOT, stdout=subprocess.DEVNULL) as waiting:
            wait_until(lambda: list(tmp_path.glob("results/*/stand_in_parallel_001")))
            assert not list(tmp_path.glob("results/*/*/events/*"))
            assert waiting.poll() is None
            held.close()
            assert waiting.wait(300) == 0

    assert refused.code == 4
    assert f"held by pid {os.getpid()}" in refused.output
    assert "group07 of another run" in refused.output


def test_a_run_of_another_plan_is_not_gone_on_with(tmp_path):
    from colocate.errors import ColocateError
    from colocate.harness.resume import find_run

    for number, name in enumerate(("mine", "mine", "other"), start=1):
        (tmp_path / f"run_{number}").mkdir()
        (tmp_path / f"run_{number}" / "run.json").write_text(json.dumps({"plan": {"name": name}}))

    assert find_run(tmp_path, "", "mine").name == "run_2"
    with pytest.raises(ColocateError, match="expected a run of mine, found one of other"):
        find_run(tmp_path, "run_3", "mine")
    with pytest.raises(ColocateError, match="expected a run of third below"):
        find_run(tmp_path, "", "third")
    with pytest.raises(ColocateError, match=r"expected a run directory, found no run\.json"):
        find_run(tmp_path, "run_19700101_000000", "mine")


# --- killed anywhere


def killed_at(place: int, path: Path, folder: Path) -> int:
    """A session that dies at the place-th thing it does to the world; how it ended."""
    on_path = folder / "on_path"
    on_path.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "tests/programs/kill_at.py", on_path / "sitecustomize.py")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{on_path}",
        "COLOCATE_TEST_KILL": f"{place}:{folder / 'results'}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    argv = arguments(path, folder, "-p", "no:html", "-p", "no:metadata")
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, timeout=600, check=False)
    return done.returncode


def check_resumes(place: int, path: Path, folder: Path) -> bool:
    """Kill a session there and take it up again; whether it does so many things at all."""
    if killed_at(place, path, folder) != -signal.SIGKILL:
        return False
    runs = list(folder.glob("results/run_*/run.json"))
    verdicts = {file: file.read_bytes() for file in folder.glob("results/*/*/verdict.json")}
    for file in [*verdicts, *folder.glob("results/*/*/experiment.json"), *runs]:
        json.loads(file.read_bytes())
    session = run(path, folder, *(["--resume"] if runs else []), "-p", "no:html", "-p", "no:metadata")
    groups = group_results(RunDirectory(sorted(folder.glob("results/run_*/run.json"))[-1].parent))

    assert {name: str(found.verdict.outcome) for name, found in groups.items()} == {
        "group01": "FEASIBLE",
        "group02": "INFEASIBLE",
    }, (place, session.output)
    assert session.junit == {"group01": "passed", "group02": "failure"}, (place, session.output)
    for found in groups.values():
        assert len(found.attempts) == 1, (place, session.output)
    for file, content in verdicts.items():
        assert file.read_bytes() == content
    wait_until(lambda: not alive_below(folder))
    for directory in folder.glob("results/run_*"):
        assert not list(directory.glob(".lock")) or not runs
    return True


@pytest.mark.slow
@pytest.mark.parametrize("place", [25, 50])
def test_a_session_killed_at_any_point_is_resumed(fake_nvml, tmp_path, place):
    """Two of the places; ``python tests/soak.py kill`` goes through all of them."""
    assert check_resumes(place, plan(tmp_path / "plan.json", GROUPS), tmp_path)


def test_what_a_killed_session_told_of_its_queue_is_told_no_more(tmp_path):
    run = RunDirectory(tmp_path / "run_20261124_053000")
    (run.path / "tasks").mkdir(parents=True)
    progress_file.tell(run.path / progress_file.QUEUE, {"waiting": [{"name": "job 7", "reason": "Resources"}]})
    take_up(run)
    assert status_line.waiting(run.path) == []
