"""The twelve groups on the study's own launchers: its catalog, stand-ins that print what the originals print."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_nvml import FakeNvml
from groups import STAND_IN, judged

from colocate.plan.catalog import Training
from colocate.plan.plan import Group, Limits, load_plan
from colocate.verdict.rules import Outcome, Verdict

ROOT = Path(__file__).parents[1]
LAUNCHER = Path(__file__).parent / "programs" / "green_launcher.sh"
REPOSITORIES = (
    "examples",
    "pytorch_resnet_cifar10",
    "VulBERTa",
    "Person_reID_baseline_pytorch",
    "MRT-OAST",
    "bug-localization-by-dnn-and-rvsm",
)


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Group]:
    """The plan's groups, their launchers in a checkout of the study beside this one."""
    for repository in REPOSITORIES:
        folder = tmp_path / "Green-deep-learning" / "repos" / repository
        folder.mkdir(parents=True)
        shutil.copy(LAUNCHER, folder / "train.sh")
    settings = tmp_path / "colocate" / "settings"
    settings.mkdir(parents=True)
    catalog = settings / "models.json"
    shutil.copy(ROOT / "settings/models_green_deep_learning.json", catalog)
    monkeypatch.setenv("GREEN_PYTHON", sys.executable)
    monkeypatch.setenv("GREEN_STAND_IN", str(STAND_IN))
    plan = load_plan(ROOT / "settings/parallel_feasibility_test.json", catalog)
    limits = Limits(settle_s=3.0)
    return {group.id: replace(group, limits=limits) for group in plan.groups}


def with_ending(training: Training, ending: str, lines: int) -> Training:
    return replace(training, env={**training.env, "GREEN_ENDING": ending, "GREEN_LINES": str(lines)})


def run(group: Group, fake: FakeNvml, folder: Path, foreground: str = "honest", background: str = "honest") -> Verdict:
    assert group.background is not None
    changed = replace(
        group,
        foreground=with_ending(group.foreground, foreground, 6),
        background=with_ending(replace(group.background, ready_timeout_s=8.0), background, 80),
    )
    return judged(changed, fake.uuid(), folder)


def test_the_original_launchers_get_the_flags_that_the_study_gave_them(groups: dict[str, Group]) -> None:
    foreground = groups["group12"].foreground

    assert foreground.argv[1:3] == ("-n", "densenet121")
    assert foreground.argv[3:7] == ("--total_epoch", "1", "--lr", "0.05")
    assert all(group.missing is None for group in groups.values())


@pytest.mark.slow
def test_two_launchers_that_train_are_feasible(groups: dict[str, Group], fake_nvml: FakeNvml, tmp_path: Path) -> None:
    verdict = run(groups["group12"], fake_nvml, tmp_path)

    assert verdict.feasible, verdict


@pytest.mark.slow
def test_a_success_line_after_a_traceback_is_not_believed(
    groups: dict[str, Group], fake_nvml: FakeNvml, tmp_path: Path
) -> None:
    """VulBERTa's program swallows every exception; its launcher then reports success and exits 0."""
    verdict = run(groups["group07"], fake_nvml, tmp_path, foreground="traceback", background="honest")

    assert verdict.outcome is Outcome.INFEASIBLE
    assert "epoch_unfinished" in verdict.codes


@pytest.mark.slow
def test_a_success_tag_without_any_training_is_not_believed(
    groups: dict[str, Group], fake_nvml: FakeNvml, tmp_path: Path
) -> None:
    """MRT-OAST's launcher prints its tag and the figures of an older model file, whatever happened."""
    verdict = run(groups["group05"], fake_nvml, tmp_path, background="stale")

    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "background_never_ready" in verdict.codes
