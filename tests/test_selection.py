from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.errors import PlanError
from colocate.plan.plan import load_plan
from colocate.plugin.selection import keywords, normalise

IDS = [f"group{number:02}" for number in range(1, 13)]


def test_a_word_for_a_group_selects_that_group():
    """pytest's own -k group1 would select group10, group11 and group12, and not group01."""
    read = {
        "Group1": "group01",
        "[group1]": "group01",
        "group1 or group12": "group01 or group12",
        "not (group2 or group3) and pcb": "not (group02 or group03) and pcb",
        "": "",
    }
    assert {written: normalise(written, IDS) for written in read} == read


def test_other_words_stay_as_they_are():
    for word in ("densenet121", "group12b", "mygroup1", "group", "groups", "resnet20", "group1.5", "low"):
        assert normalise(f"{word} and not {word}", IDS) == f"{word} and not {word}"


def test_an_unknown_group_is_an_error_that_says_which_there_are():
    with pytest.raises(PlanError) as error:
        normalise("group99 or group0 or group99", IDS)

    assert error.value.mistakes == (
        "-k: no group99 in the plan (group01 to group12)",
        "-k: no group0 in the plan (group01 to group12)",
    )


def test_an_id_within_other_ids_excludes_them():
    ids = ["group1", "group10", "group11", "pair", "pair-long"]

    assert normalise("group1", ids) == "(group1 and not (group10 or group11))"
    assert normalise("not pair", ids) == "not (pair and not (pair-long))"
    assert normalise("group10", ids) == "group10"


@settings(deadline=None)
@given(st.integers(1, 300), st.data())
def test_every_spelling_of_a_number_means_the_group_of_that_number(num_groups, data):
    width = max(2, len(str(num_groups)))
    ids = [f"group{number:0{width}}" for number in range(1, num_groups + 1)]
    number = data.draw(st.integers(1, num_groups))
    between = data.draw(st.sampled_from(["", "_", "-"]))
    zeros = data.draw(st.integers(0, 3))

    assert normalise(f"group{between}{'0' * zeros}{number}", ids) == ids[number - 1]


@settings(deadline=None)
@given(st.text())
def test_any_expression_is_rewritten_or_a_plan_error_and_rewriting_twice_changes_nothing(text):
    try:
        once = normalise(text, IDS)
    except PlanError:
        return
    assert normalise(once, IDS) == once


def test_a_group_is_found_by_its_trainings_and_its_tier():
    plan = load_plan(Path(__file__).parents[1] / "settings" / "parallel_feasibility_test.json")

    assert keywords(plan.groups[0]) == {
        *("group01", "ultra-low", "examples", "mnist_ff", "examples_mnist_ff"),
        *("pytorch_resnet_cifar10", "resnet20", "pytorch_resnet_cifar10_resnet20"),
    }
