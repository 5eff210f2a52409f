"""Two witnesses for every number: sound runs stay sound, and no wrong sensor ends in FEASIBLE."""

from dataclasses import dataclass, replace

from builders import background, evidence, foreground, steps
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.process.exit_status import Exit
from colocate.units import MIB
from colocate.verdict.evidence import Evidence, GpuProcess, Listed, Listing, ProcessPeak, ProcessRun, Sample, Trace
from colocate.verdict.memory_history import at_least
from colocate.verdict.overlap import memory_missing_beside
from colocate.verdict.rules import judge
from colocate.verdict.verdict import Outcome
from colocate.verdict.witnesses import contradictions, unaccounted

# The run of `builders`: the background from 1 to 23 s, the foreground from 8 to 21 s, and all is back at 24 s.
BEGAN_S, CAME_S, WENT_S, ENDED_S, OVER_S = 1.0, 8.0, 21.0, 23.0, 25.0
EVERY_S = 0.05


@dataclass(frozen=True)
class Truth:
    """What really happened, in MiB: each training's memory at its start, and from the middle of the foreground on."""

    baseline: int
    background: tuple[int, int]
    foreground: tuple[int, int]
    turn_s: float
    lag_s: float
    drift: int

    def background_at(self, at_s: float) -> int:
        if not BEGAN_S + 0.5 <= at_s < ENDED_S + self.lag_s:
            return 0
        return self.background[at_s >= self.turn_s]

    def foreground_at(self, at_s: float) -> int:
        if not CAME_S + 0.5 <= at_s < WENT_S + self.lag_s:
            return 0
        return self.foreground[at_s >= self.turn_s]

    def baseline_at(self, at_s: float) -> int:
        """A desktop wanders."""
        return max(0, self.baseline + self.drift * (int(at_s * 3) % 3 - 1))

    def used_at(self, at_s: float) -> int:
        return self.baseline_at(at_s) + self.background_at(at_s) + self.foreground_at(at_s)


truths = st.builds(
    Truth,
    baseline=st.integers(0, 900),
    background=st.tuples(st.integers(900, 1800), st.integers(900, 1800)),
    foreground=st.tuples(st.integers(300, 2500), st.integers(300, 2500)),
    turn_s=st.floats(10, 19),
    lag_s=st.floats(0, 0.04),
    drift=st.integers(0, 30),
)


@dataclass(frozen=True)
class Run:
    """A run of which every witness tells the truth, each as often and as late as the real one may."""

    real: Truth
    late_s: float
    phase_s: float
    lists_tell_memory: bool
    probes: bool

    def evidence(self) -> Evidence:
        real = self.real
        times = [number * EVERY_S for number in range(int(OVER_S / EVERY_S))]
        samples = tuple(Sample(at, real.used_at(at) * MIB) for at in times)
        listed_s = [at + self.late_s for at in (3.0, 7.5, 11.0, 16.0, 20.5, 22.0)]
        ours = foreground(
            process_runs=(ProcessRun("training.log", CAME_S, Exit(0, None, WENT_S)),),
            held_at_least=_told(real.foreground_at, self.phase_s) if self.probes else (),
        )
        theirs = background(
            process_runs=(ProcessRun("training_1.log", BEGAN_S, Exit(None, "SIGTERM", ENDED_S, stopped=True)),),
            progress_events=steps(100, 3.0, 22.0),
            held_at_least=_told(real.background_at, self.phase_s) if self.probes else (),
        )
        return evidence(
            trace=Trace(samples, EVERY_S),
            baseline_bytes=real.baseline_at(0) * MIB,
            final_bytes=real.baseline_at(OVER_S) * MIB,
            listings=tuple(_listing(real, at, self.lists_tell_memory) for at in listed_s),
            foreground=ours,
            background=theirs,
        )


runs = st.builds(Run, truths, st.floats(0, 0.1), st.floats(0, 0.25), st.booleans(), st.booleans())


def _listing(real: Truth, at_s: float, tells_bytes: bool) -> Listing:
    sizes = real.foreground_at(at_s) * MIB, real.background_at(at_s) * MIB
    told = [Listed(1, size if tells_bytes else None) if size else Listed() for size in sizes]
    return Listing(at_s, sum(sizes) if tells_bytes else 0, *told)


def _told(held_at: object, phase_s: float) -> tuple[tuple[float, int], ...]:
    """What the probe reads four times a second, without the context."""
    times = [phase_s + number * 0.25 for number in range(int(OVER_S / 0.25))]
    sizes = [(at, max(0, held_at(at) - 250) * MIB) for at in times]  # type: ignore[operator]
    return at_least([[one for one in sizes if one[1]]])


@settings(max_examples=40, deadline=None)
@given(runs)
def test_witnesses_that_tell_the_truth_never_contradict_each_other(run: Run) -> None:
    seen = run.evidence()

    assert contradictions(seen) == ()
    assert unaccounted(seen) is None
    assert judge(seen).feasible, judge(seen)


@settings(max_examples=40, deadline=None)
@given(runs, st.integers(5500, 6000))
def test_memory_of_somebody_on_no_list_is_no_proof_that_a_group_does_not_fit(run: Run, more: int) -> None:
    """It was INFEASIBLE, although the two had the rest for themselves before it came and after it went."""
    run = replace(run, lists_tell_memory=True, real=replace(run.real, background=(1800, 1800)))
    seen = run.evidence()
    samples = tuple(Sample(at, used + more * MIB * (10.2 < at < 20.0)) for at, used in seen.trace.samples)
    verdict = judge(replace(seen, trace=replace(seen.trace, samples=samples)))

    assert (verdict.outcome, verdict.codes) == (Outcome.INCONCLUSIVE, ("foreign_process",))


@settings(max_examples=40, deadline=None)
@given(runs)
def test_a_background_on_no_list_beside_the_foreground_was_no_load(run: Run) -> None:
    """A process is listed as long as it lives with a CUDA context, whether lists tell memory or not."""
    seen = run.evidence()
    listings = tuple(
        replace(one, background=Listed()) if CAME_S < one.elapsed_s < WENT_S else one for one in seen.listings
    )
    left = replace(seen, listings=listings)

    assert "was not on the driver's list" in (memory_missing_beside(left) or "it was a load")
    assert not judge(left).feasible


def frozen(samples: tuple[Sample, ...], from_s: float, to_s: float) -> tuple[Sample, ...]:
    """The sensor stands still for a while."""
    stood = next(one.used_bytes for one in reversed(samples) if one.elapsed_s <= from_s)
    return tuple(Sample(at, stood if from_s <= at <= to_s else used) for at, used in samples)


@settings(max_examples=40, deadline=None)
@given(runs, st.floats(0, CAME_S), st.floats(WENT_S + 0.5, OVER_S))
def test_a_sensor_that_stands_still_while_a_training_comes_is_contradicted(
    run: Run, from_s: float, to_s: float
) -> None:
    """Whether lists tell memory or not. It used to be FEASIBLE: 4000 + 3900 MiB on a limit of 7500."""
    seen = run.evidence()
    samples = frozen(seen.trace.samples, from_s, to_s)

    assert not judge(replace(seen, trace=replace(seen.trace, samples=samples))).feasible


@settings(max_examples=40, deadline=None)
@given(runs, st.floats(CAME_S + 1, WENT_S - 1))
def test_a_sensor_that_stands_still_from_some_moment_on_is_contradicted(run: Run, from_s: float) -> None:
    """Nothing moves when the foreground goes, although the background goes on."""
    seen = run.evidence()
    samples = frozen(seen.trace.samples, from_s, ENDED_S)

    assert not judge(replace(seen, trace=replace(seen.trace, samples=samples))).feasible


@settings(max_examples=40, deadline=None)
@given(runs, st.floats(3, WENT_S - 6), st.sampled_from([1000, 1024, 1024**2]), st.booleans())
def test_another_unit_from_some_moment_on_is_contradicted(
    run: Run, from_s: float, factor: int, lists_too: bool
) -> None:
    """KiB, MiB or units of a thousand, of the sensor alone or of the lists as well."""
    seen = run.evidence()
    samples = tuple(Sample(at, used // factor if at >= from_s else used) for at, used in seen.trace.samples)

    def smaller(one: Listed) -> Listed:
        return one if one.used_bytes is None else replace(one, used_bytes=one.used_bytes // factor)

    listings = tuple(
        replace(
            one,
            used_bytes=one.used_bytes // factor,
            foreground=smaller(one.foreground),
            background=smaller(one.background),
        )
        if lists_too and one.elapsed_s >= from_s
        else one
        for one in seen.listings
    )

    assert not judge(replace(seen, trace=replace(seen.trace, samples=samples), listings=listings)).feasible


@settings(max_examples=40, deadline=None)
@given(runs, st.integers(200, 3000))
def test_an_allocator_that_holds_more_than_the_gpu_is_contradicted(run: Run, more: int) -> None:
    """The sensor of another GPU, say, which moves, but not with our processes."""
    seen = run.evidence()
    highest = max(sample.used_bytes for sample in seen.trace.samples)
    held = ((CAME_S + 1, highest + more * MIB), (WENT_S - 1, 0))
    wrong = replace(seen, foreground=replace(seen.foreground, held_at_least=held))

    assert not judge(wrong).feasible


def test_accounting_of_less_than_a_process_held_is_contradicted() -> None:
    held = GpuProcess(200, "foreground", "python train.py", 9.0, 20.0, 1800 * MIB)
    ours = foreground(process_peaks=(ProcessPeak(200, 0, 300 * MIB),))

    assert judge(evidence(foreground=ours, gpu_processes=(held,))).codes == ("sensor_contradicted",)
