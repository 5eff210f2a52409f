"""Faults around a whole session: the disk, host memory, GPUs that fail beside others, hostile input."""

import contextlib
import csv
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from seen import note
from sessions import EPOCH, ROOT, Session, alive_below, arguments, pair, plan, run, stand_in
from test_supervisor import control_group

from colocate.cli.main import main
from colocate.errors import PlanError
from colocate.plan.plan import load_plan
from colocate.results.layout import RESERVE_BYTES
from colocate.units import MIB

pytestmark = pytest.mark.slow


def codes(session: Session, group: str) -> list[str]:
    verdict = session.verdicts[group]
    found = [reason["code"] for reason in verdict["reasons"]]
    note(f"{group} {verdict['outcome']} ({', '.join(found)})")
    return found


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small disk of its own; skips where we may not mount one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# --- the disk


def test_a_disk_that_fills_up_ends_the_trainings_and_keeps_the_records(fake_nvml, tmp_path):
    """The foreground prints more than there is room for; the second group finds no room to begin."""
    entries = [pair(stand_in("--flood", str(8 * MIB), "--steps", "2000", "--probe")), pair()]
    path = plan(tmp_path / "plan.json", entries)
    with mounted(tmp_path / "results", f"size={RESERVE_BYTES + 3 * MIB}"):
        session = run(path, tmp_path)

        assert session.code == 1, session.output
        assert session.junit == {"group01": "error", "group02": "error"}
        assert {"log_failed", "disk_full"} & set(codes(session, "group01"))
        assert alive_below(tmp_path) == []


def test_what_keeps_a_run_from_starting_is_one_line_with_the_cure(fake_nvml, tmp_path):
    """A disk without room for records, results that cannot be written, a driver that is not loaded."""
    path = plan(tmp_path / "plan.json", [pair()])
    for options, said in (
        ("size=1m", "expected room for 8 MiB of records, got No space left on device; make room"),
        ("ro", ": Read-only file system"),
    ):
        with mounted(tmp_path / "results", options) as results:
            session = run(path, tmp_path)
            assert session.code == 4
            assert said in session.output
            assert list(results.iterdir()) == []
        results.rmdir()

    fake_nvml.fail("nvmlInit*", 9)
    session = run(path, tmp_path)
    assert session.code == 4
    assert "sudo modprobe nvidia" in session.output
    assert not (tmp_path / "results").exists()


def test_results_that_vanish_are_never_a_success(fake_nvml, tmp_path):
    """The foreground removes the folder that it is recorded in."""
    vanish = ["sh", "-c", f"rm -rf {tmp_path}/results/run_*/*_001; exec sleep 0.3"]
    path = plan(tmp_path / "plan.json", [pair({"command": vanish, "name": "vanish"})])
    session = run(path, tmp_path)

    assert session.code != 0
    assert session.junit == {"group01": "error+error"}  # of the group, and of its cleaning up
    assert not list(tmp_path.glob("results/*/*/verdict.json"))


# --- host memory


def test_the_kernels_own_killer_is_told_from_a_full_gpu(fake_nvml, tmp_path):
    """The session may use 450 MiB of host memory, of which the foreground wants 800: exit by SIGKILL, no CUDA text."""
    path = plan(tmp_path / "plan.json", [pair(stand_in("--host-memory", "800", "--probe"))])
    with control_group("memory") as folder:
        (folder / "memory.limit_in_bytes").write_text(str(450 * MIB))
        inside = ["sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh"]
        done = subprocess.run(
            [*inside, *arguments(path, tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=600
        )
        session = Session(done.returncode, done.stdout + done.stderr, tmp_path)

    assert session.verdicts["group01"]["outcome"] == "INFEASIBLE", session.output
    assert "foreground_host_out_of_memory" in codes(session, "group01")


# --- GPUs


def test_a_quarantined_gpu_gets_no_group_and_the_others_go_on(fake_nvml, tmp_path):
    """Two GPUs and two workers: the first group leaves memory on its GPU, the other GPU takes all that follow."""
    fake_nvml.add_gpu()
    leak = pair(stand_in("--hold", "700", "--leak", "--probe"), expected_minutes=60)
    path = plan(tmp_path / "plan.json", [leak, *[pair()] * 3])
    session = run(path, tmp_path, "-n2")
    gpus = {name: verdict["outcome"] for name, verdict in session.verdicts.items()}

    assert gpus == {"group01": "INCONCLUSIVE", **dict.fromkeys(("group02", "group03", "group04"), "FEASIBLE")}
    assert codes(session, "group01") == ["gpu_not_returned"]


def test_on_the_only_gpu_the_rest_is_refused(fake_nvml, tmp_path):
    """A refused group leaves its outcome in journal, summary.csv and page, also rebuilt, and is run on resume."""
    leak = pair(stand_in("--leak", "--hold", "700", "--probe"))
    path = plan(tmp_path / "plan.json", [leak, pair()])
    session = run(path, tmp_path)

    assert session.junit == {"group01": "error", "group02": "error"}
    assert "[gpu_quarantined]" in session.output
    assert not list(session.run.glob("stand_in_parallel_002"))
    assert [row["codes"] for row in summary(session)] == ["gpu_not_returned", "gpu_quarantined"]

    assert main(["report", str(session.run)]) == 0
    assert [row["outcome"] for row in summary(session)] == ["INCONCLUSIVE", "INCONCLUSIVE"]
    assert "gpu_quarantined" in (session.run / "report.html").read_text()

    again = run(path, tmp_path, "--resume", "-k", "group02")
    assert "group02 runs: it was never started" in again.output
    assert [row["codes"] for row in summary(again)] == ["gpu_not_returned", ""]
    warned = [warning["code"] for warning in again.verdicts["group02"]["warnings"]]
    assert "unexplained_baseline" in warned  # what the first group left is no silent part of the second's baseline


def summary(session: Session) -> list[dict[str, str]]:
    with (session.run / "summary.csv").open() as file:
        return list(csv.DictReader(file))


# --- hostile input


MARKUP = "<script>alert(1)</script>&amp;\N{RIGHT-TO-LEFT OVERRIDE}evil"


def test_hostile_names_notes_and_logs_stay_text_and_in_their_folder(fake_nvml, tmp_path, monkeypatch):
    monkeypatch.setenv("CI_JOB_TOKEN", "s3cr3t-t0ken")
    shout = 'printf "\\033[31m%s \\033]0;title\\007\\n" "$0"; exit 1'
    command = {"command": ["sh", "-c", shout, MARKUP + '"; touch pwned; "'], "name": "evil"}
    entries = [pair(command, note=MARKUP + "\n../../etc", risk=MARKUP)]
    path = plan(tmp_path / "plan.json", entries)
    session = run(path, tmp_path, "-n1")
    everything = "".join(file.read_text(errors="replace") for file in tmp_path.rglob("*") if _is_report(file))

    assert session.junit == {"group01": "error"}
    assert "<script>alert(1)" not in session.page
    assert "\x1b]0" not in session.page + session.output
    assert not list(tmp_path.rglob("pwned"))
    assert {item.name for item in tmp_path.iterdir()} <= {
        *("plan.json", "results", "reports", "junit.xml", "fake_nvml.state", "locks")
    }
    assert "s3cr3t-t0ken" not in everything + session.output


def _is_report(file: Path) -> bool:
    return file.is_file() and file.suffix in (".json", ".html", ".xml", ".csv", ".jsonl")


def test_a_name_that_is_no_name_is_refused(tmp_path):
    for name in ("../../evil", "a/b", "a\nb", MARKUP, ""):
        with pytest.raises(PlanError, match=r"\$\.experiments\[0\]\.foreground\.name"):
            load_plan(plan(tmp_path / "plan.json", [pair({**EPOCH, "name": name})]))
