import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.verdict.plan_verdict import PlanVerdict

IDS = [f"group{number:02}" for number in range(1, 13)]


def plan_verdict(needed=11, **counts):
    """The twelve groups, so many of which ended in each way; the rest has no outcome."""
    outcomes = [outcome.replace("_", " ") for outcome, count in counts.items() for _ in range(count)]
    return PlanVerdict.of(IDS, dict(zip(IDS, outcomes, strict=False)), needed, 0.95)


@pytest.mark.parametrize(
    ("counts", "holding"),
    [
        ({"FEASIBLE": 12}, "holds"),
        ({"FEASIBLE": 11, "INFEASIBLE": 1}, "holds"),
        ({"FEASIBLE": 11, "INTERRUPTED": 1}, "holds"),
        ({"FEASIBLE": 10, "INFEASIBLE": 2}, "fails"),
        ({"INFEASIBLE": 2}, "fails"),
        ({"FEASIBLE": 10, "INCONCLUSIVE": 2}, "is undecided"),
        ({"FEASIBLE": 10, "INFEASIBLE": 1, "NOT_RUN": 1}, "is undecided"),
        ({"FEASIBLE": 1}, "is undecided"),
        ({}, "is undecided"),
    ],
)
def test_the_plan_holds_fails_or_is_undecided(counts, holding):
    assert plan_verdict(**counts).holding == holding


def test_the_verdict_of_the_plan_shows_its_rule():
    found = str(plan_verdict(FEASIBLE=10, INFEASIBLE=2))
    assert found == "10 of 12 groups feasible; 11 needed (95 % of 12, rounded down): the plan fails"


def test_groups_without_a_verdict_are_named_with_the_reason():
    found = plan_verdict(FEASIBLE=9, INTERRUPTED=1, NOT_RUN=1)
    assert found.missing() == (
        "INCOMPLETE: 3 groups have no verdict (INTERRUPTED: group10; NOT RUN: group11; not selected: group12)"
    )
    found = plan_verdict(FEASIBLE=10, INCONCLUSIVE=2)
    assert (found.feasible, found.missing()) == (10, None)
    assert "2 inconclusive" in str(found)
    many = "INCOMPLETE: 11 groups have no verdict (not selected: group02 to group12)"
    assert plan_verdict(FEASIBLE=1).missing() == many


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from(["FEASIBLE", "INFEASIBLE", "INCONCLUSIVE", "NOT RUN"]), max_size=12), st.integers(0, 12)
)
def test_no_further_verdict_turns_a_plan_that_holds_or_fails(outcomes, needed):
    ends = [
        PlanVerdict.of(IDS, dict(zip(IDS, outcomes[:length], strict=False)), needed, 0.95).holding
        for length in range(13)
    ]
    decided = [end for end in ends if end != "is undecided"]
    assert len(set(decided)) <= 1
    assert ends[len(ends) - len(decided) :] == decided
