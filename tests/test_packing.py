"""``colocate pack``: which trainings should share a GPU, against every choice where that many can be tried."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import pytest
from groups import group, training
from hypothesis import given, settings
from hypothesis import strategies as st

import colocate.advice.solo_profiles
from colocate.advice.forecast import Answer
from colocate.advice.packing import PackingProblem, Pair, best_pairs
from colocate.advice.solo_profiles import SoloProfile, remembered
from colocate.cli.main import main
from colocate.harness.simulation import NOTHING, SimulatedRun
from colocate.plan.plan import load_plan
from colocate.results.layout import RunDirectory
from colocate.results.record import write_record
from colocate.units import MIB
from colocate.verdict.predicted_peak import PeakRange

BASE, LIMIT = 200, 3000


def problem(*spans: tuple[int, int]) -> PackingProblem:
    """Trainings whose peaks lie between two sizes in MiB."""
    peaks = tuple(PeakRange(low * MIB, (low + high) // 2 * MIB, high * MIB) for low, high in spans)
    return PackingProblem(peaks, BASE * MIB, LIMIT * MIB)


def matchings(places: list[int], edges: set[Pair]) -> Iterator[tuple[Pair, ...]]:
    """Every set of pairs without a common member."""
    if not places:
        yield ()
        return
    first, *others = places
    yield from matchings(others, edges)
    for other in others:
        if (first, other) in edges:
            left = [place for place in others if place != other]
            yield from ((*more, (first, other)) for more in matchings(left, edges))


def taken(asked: PackingProblem, pairs: tuple[Pair, ...] | list[Pair]) -> int:
    return sum((sum(asked.peaks[place].high_bytes // MIB for place in pair)) ** 2 for pair in pairs)


def test_a_pair_is_as_large_as_both_and_a_measurement_decides_what_its_range_leaves_open() -> None:
    asked = problem((1500, 1600), (1300, 1500))
    peak = asked.peak((0, 1))
    assert (peak.low_bytes, peak.high_bytes) == ((BASE + 2800) * MIB, (BASE + 3100) * MIB)
    for changed, answer in (
        ({"limit_bytes": 3100 * MIB}, Answer.UNDECIDED),
        ({"limit_bytes": 3100 * MIB, "known": {(0, 1): True}}, Answer.FITS),
        ({}, Answer.DOES_NOT_FIT),
        ({"limit_bytes": 3301 * MIB}, Answer.FITS),
        ({"limit_bytes": 3301 * MIB, "known": {(0, 1): False}}, Answer.DOES_NOT_FIT),
    ):
        assert replace(asked, **changed).answers == {(0, 1): answer}
    assert problem((1, 2), (3000, 3000)).answers == {}, "one of them does not even fit alone"


@given(st.lists(st.tuples(st.integers(0, 2900), st.integers(0, 500)), min_size=1, max_size=8), st.data())
@settings(deadline=None, max_examples=150)
def test_no_choice_gives_more_pairs_or_as_many_with_more_room(
    spans: list[tuple[int, int]], data: st.DataObject
) -> None:
    asked = problem(*((low, low + more) for low, more in spans))
    measured = [
        pair for pair, answer in asked.answers.items() if answer is Answer.UNDECIDED and data.draw(st.booleans())
    ]
    asked = replace(asked, known={pair: data.draw(st.booleans()) for pair in measured})
    pairs = best_pairs(asked, Answer.FITS)

    fitting = {pair for pair, answer in asked.answers.items() if answer is Answer.FITS}
    members = [place for pair in pairs for place in pair]
    assert len(members) == len(set(members))
    assert set(pairs) <= fitting
    every = matchings(list(range(len(asked.peaks))), fitting)
    assert (-len(pairs), taken(asked, pairs)) == min((-len(one), taken(asked, one)) for one in every)


# --- the command ------------------------------------------------------------------------------------------------------

# Names with the lowest and highest peak in MiB: "c" surely fits beside "a" to "two", "one" and "two" may fit together.
SIZES = {"a": (4000, 4000), "b": (3400, 3400), "c": (900, 900), "one": (2000, 2700), "two": (2001, 2701)}


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five trainings with known dry runs; how they are grouped in the plan does not matter."""

    def simulate(programs: Any, *_: Any, **__: Any) -> list[SimulatedRun]:
        found = []
        for program in programs:
            low, high = (size * MIB for size in SIZES[program.name])
            found.append(SimulatedRun(program.name, program.argv, 1.0, peak=PeakRange(low, high, high), parts=NOTHING))
        return found

    monkeypatch.setattr(colocate.advice.solo_profiles, "simulate", simulate)
    entries = [{"mode": "default", "name": name, "command": ["{python}", "-c", name]} for name in SIZES]
    limits = {"gpu": "8192MB", "peak": "5500MB"}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"experiment_name": "five", "limits": limits, "experiments": entries}))
    return path


def pack(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["pack", *words])
    said = capsys.readouterr()
    return code, " ".join((said.out or said.err).split())


def test_the_schedule_has_the_best_pairs_and_the_plan_every_training(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of ten pairs four surely fit, five surely do not and one is open; it would make a second pair."""
    out = tmp_path / "pack.json"
    code, said = pack(capsys, f"--from={plan}", "--gpus=2", f"--out={out}")
    assert "five: 5 trainings on 8 GB GPUs, predicted" in said
    assert "10 pairs from 5 solo runs: 4 fit, 5 do not, 1 open" in said
    assert "2 GPUs, 2 rounds instead of 3" in said
    assert "open ones may give more" in said
    assert code == 3
    written = load_plan(out)
    shared = [group for group in written.groups if group.background is not None]
    assert [{one.name for one in group.trainings} & {"c"} for group in shared] == [{"c"}]
    assert sorted(one.name for group in written.groups for one in group.trainings) == sorted(SIZES)
    assert written.limits.peak_bytes == 5500 * MIB


@pytest.mark.parametrize("fits", [True, False])
def test_what_an_earlier_run_measured_decides_the_open_pair(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fits: bool
) -> None:
    loaded = load_plan(plan)
    trainings = {one.name: one for group in loaded.groups for one in group.trainings}
    seen = builders.evidence()
    run = RunDirectory(tmp_path / "run_1")
    members = [trainings["one"], trainings["two"]]
    limits = replace(seen.limits, peak_bytes=loaded.limits.peak_bytes if fits else 3000 * MIB)
    evidence = replace(
        seen,
        limits=limits,
        foreground=replace(seen.foreground, argv=members[0].argv),
        background=replace(seen.background, argv=members[1].argv),
    )
    write_record(run.group("one", 1, parallel=True).create(), group(*members), evidence, [], run.name)
    words = [f"--from={plan}", f"--known={run.path}", f"--out={tmp_path / 'pack.json'}"]

    code, said = pack(capsys, *words, *(() if fits else ("--limit=3000MB",)))
    assert "1 pair measured in earlier runs" in said
    assert code == (0 if fits else 1)


def test_what_was_measured_on_a_gpu_of_another_size_is_not_known(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run_1")
    seen = builders.evidence()
    write_record(
        run.group("mnist", 1, parallel=True).create(), group(training("mnist"), training("load")), seen, [], run.name
    )
    argv = [seen.foreground.argv, seen.background.argv]
    solos = [SoloProfile(replace(training("any"), argv=one), PeakRange(0, 0, 0)) for one in argv]
    asked = PackingProblem((), 0, seen.limits.peak_bytes)

    assert remembered(asked, solos, run, seen.device.total_bytes).known == {(0, 1): True}
    assert remembered(asked, solos, run, 2 * seen.device.total_bytes).known == {}
