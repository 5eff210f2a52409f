"""`colocate.plan.overrides`: groups with something changed in one training."""

from dataclasses import replace
from pathlib import Path

import pytest
from groups import group, training

from colocate.errors import PlanError
from colocate.plan.catalog import load_catalog
from colocate.plan.overrides import Override, solo_group, varied, with_flag
from colocate.plan.plan import load_plan

SETTINGS = Path(__file__).parents[1] / "settings"


def test_a_hyperparameter_of_the_catalog_reaches_the_command_line() -> None:
    plan = load_plan(SETTINGS / "parallel_feasibility_test.json")
    (given,) = (one for one in plan.groups if one.id == "group09")
    changed = varied(given, Override("foreground", {"batch_size": 2}), load_catalog(SETTINGS / "models.json"))
    place = changed.foreground.argv.index("--batch-size")
    assert changed.foreground.argv[place + 1] == "2"
    assert changed.foreground.hyperparameters["batch_size"] == 2
    assert changed.background == given.background
    assert changed.content_hash != given.content_hash
    with pytest.raises(PlanError, match="batchsize"):
        varied(given, Override("foreground", {"batchsize": 2}), load_catalog(SETTINGS / "models.json"))


def test_a_command_has_options_and_no_hyperparameters() -> None:
    given = group(training("own", "--memory", "100"), None)
    changed = varied(given, Override("foreground", options={"--memory": 50}, env={"A": "b"}), None)
    assert changed.foreground.argv[-2:] == ("--memory", "50")
    assert changed.foreground.env == {"A": "b"}
    with pytest.raises(PlanError, match="own is a command"):
        varied(given, Override("foreground", {"batch_size": 2}), None)
    with pytest.raises(PlanError, match="expected a background"):
        varied(given, Override("background"), None)


def test_a_training_alone_keeps_the_limits_of_its_group() -> None:
    given = replace(group(training("a"), training("b"), peak="100MB"), runs=3)
    found = solo_group(training("b"), given)
    assert (found.foreground.name, found.background, found.runs) == ("b", None, 1)
    assert found.limits == given.limits


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["train", "--bs", "4", "--lr", "1"], ["train", "--bs", "8", "--lr", "1"]),
        (["train", "--bs=4"], ["train", "--bs=8"]),
        (["train"], ["train", "--bs", "8"]),
        (["train", "--bs", "4", "--bs", "2"], ["train", "--bs", "8", "--bs", "8"]),
    ],
)
def test_the_batch_size_of_a_command_line_is_replaced_or_added(argv, expected) -> None:
    assert with_flag(argv, "--bs", 8) == tuple(expected)
