"""``pytest feasibility --compare-solo`` as a user starts it, and what its views show."""

from pathlib import Path

import pytest
from fake_nvml import FakeNvml
from sessions import plan, run, stand_in

from colocate.cli.main import main


def paired(name: str, *options: str) -> dict[str, object]:
    reported = stand_in("--probe", "--step-s", "0.02", "--shared-step-s", "0.03", *options)
    return {**reported, "name": name, "repeat_args": ["--repeat"]}


@pytest.mark.slow
def test_a_feasible_group_says_whether_it_was_worth_it(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    entry = {"mode": "parallel", "foreground": paired("ours", "--steps", "60"), "background": paired("load")}
    path = plan(tmp_path / "plan.json", [entry])

    session = run(path, tmp_path, "--device=nvidia", "--compare-solo")

    assert session.code == 0, session.output
    assert "worth it? sharing saves" in session.output
    (folder,) = session.run.glob("ours_parallel_001")
    assert (folder / "speedup.json").exists()
    assert "Is sharing worth it?" in session.page
    assert "sharing saves" in session.page
    assert "time_saved_low" in (session.run / "summary.csv").read_text()
    assert len(session.verdicts) == 1, "runs alone are no groups of the run"

    assert main(["verify", str(session.run)]) == 0
