"""Which further runs a program gets, and what its runs say together."""

from colocate.harness.exploration import BRANCH, MOST_RUNS, TAKES_ALL, Answers, Exploration, Observed
from colocate.harness.simulated_run import NOTHING, SimulatedRun
from colocate.units import MIB
from colocate.verdict import PeakRange

NO, YES = frozenset({False}), frozenset({True})


def seen(answers: Answers, peak_mib: int | None, **told) -> Observed:
    """A run with a peak, or one that failed."""
    run = SimulatedRun("one", ("one",), 1.0, parts=NOTHING)
    if peak_mib is None:
        run = SimulatedRun("one", ("one",), 1.0, failure="ended with 1", failure_code="dry_run_failed")
    else:
        size = peak_mib * MIB
        run = SimulatedRun("one", ("one",), 1.0, peak=PeakRange(size // 2, size, 2 * size), parts=NOTHING)
    return Observed(answers, run, **told)


def explored(show) -> tuple[list[Answers], SimulatedRun]:
    """All runs of a program that shows what a function says, and the result."""
    exploration, made = Exploration(60, 8192 * MIB), []
    while (answers := exploration.following()) is not None:
        made.append(answers)
        exploration.take(show(answers))
    return made, exploration.result()


def test_an_ordinary_program_runs_once() -> None:
    made, result = explored(lambda answers: seen(answers, 100, decisions={"train.py:7": (NO | YES, frozenset())}))

    assert made == [Answers()]
    assert result.doubts == ()


def test_a_branch_with_work_behind_it_is_tried_and_the_range_is_over_both() -> None:
    """`if hard.any():` read False, so the heavy side was never run and the program was said to fit."""

    def show(answers: Answers) -> Observed:
        taken = "train.py:7" in answers.other
        return seen(
            answers, 900 if taken else 100, decisions={"train.py:7": (YES, frozenset()) if taken else (NO, YES)}
        )

    made, result = explored(show)
    assert [sorted(one.other) for one in made] == [[], ["train.py:7"]]
    assert result.peak == PeakRange(50 * MIB, 900 * MIB, 1800 * MIB)
    assert result.doubts == ()
    assert any("train.py:7" in note for note in result.notes)


def test_a_side_that_cannot_be_tried_leaves_a_doubt_with_its_place() -> None:
    def show(answers: Answers) -> Observed:
        return seen(answers, None if answers.other else 100, decisions={} if answers.other else {"a.py:3": (NO, YES)})

    made, result = explored(show)
    assert len(made) < MOST_RUNS
    assert [code for code, _ in result.doubts] == [BRANCH]
    assert "a.py:3" in result.doubts[0][1]


def test_sides_that_hide_each_other_are_tried_one_by_one() -> None:
    """With the first condition true the second is never asked."""

    def show(answers: Answers) -> Observed:
        if "a.py:1" in answers.other:
            return seen(answers, 300, decisions={"a.py:1": (YES, NO)})
        second = "a.py:2" in answers.other
        asked = {"a.py:1": (NO, YES), "a.py:2": (YES, frozenset()) if second else (NO, YES)}
        return seen(answers, 500 if second else 100, decisions=asked)

    made, result = explored(show)
    assert [sorted(one.other) for one in made] == [[], ["a.py:1", "a.py:2"], ["a.py:2"]]
    assert result.peak is not None
    assert result.peak.expected_bytes == 500 * MIB
    assert result.doubts == ()


def test_an_answer_without_which_the_program_fails_is_a_check() -> None:
    def show(answers: Answers) -> Observed:
        held = "a.py:3" in answers.other
        return seen(answers, 100 if held else None, decisions={"a.py:3": (YES, NO) if held else (NO, YES)})

    _, result = explored(show)
    assert result.failure is None
    assert result.doubts == ()


def test_who_goes_on_after_a_refusal_takes_what_it_gets() -> None:
    """A search for the largest batch went on until a size overflowed, and that was the program's fault."""
    made, result = explored(lambda one: seen(one, 30000 if one.size == "generous" else 8000, refused=1))

    assert [one.size for one in made] == ["generous", "real"]
    assert result.peak is not None
    assert result.peak == PeakRange(0, 8000 * MIB, 8192 * MIB)
    assert [code for code, _ in result.doubts] == [TAKES_ALL]


def test_asking_for_the_size_matters_only_where_the_peak_follows() -> None:
    made, logging = explored(lambda one: seen(one, 500, asked_size=True))
    _, sizing = explored(lambda one: seen(one, 5000 if one.size == "generous" else 3000, asked_size=True))

    assert [one.size for one in made] == ["generous", "smaller"]
    assert logging.doubts == ()
    assert [code for code, _ in sizing.doubts] == [TAKES_ALL]


def test_no_run_is_begun_once_the_time_is_up() -> None:
    exploration = Exploration(0.5, 8192 * MIB)
    exploration.take(seen(Answers(), 100, decisions={"a.py:3": (NO, YES)}))

    assert exploration.following() is None
    assert [code for code, _ in exploration.result().doubts] == [BRANCH]


def test_a_program_that_only_the_cut_breaks_is_run_whole() -> None:
    """Predictions that are compared with all labels used to end as the program's own failure."""
    made, result = explored(lambda answers: seen(answers, 300 if answers.whole else None, cut=not answers.whole))
    _, failed = explored(lambda answers: seen(answers, None, cut=not answers.whole))

    assert made == [Answers(), Answers(whole=True)]
    assert result.peak is not None
    assert failed.failure is not None
    assert failed.failure.endswith("its passes over the data were cut, which may be why")
