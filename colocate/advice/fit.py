# SPDX-License-Identifier: Apache-2.0
"""The largest value of a hyperparameter with which a group still fits: foreseen, tried, and confirmed.

On the virtual GPU values are forecast from dry runs, and the answer is confirmed by a run of the group. On a GPU
every trial is a run of the group, and the forecast only says where to begin. Decides what is tried; how a group is run
or dry-run is told by its caller.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from colocate.advice.bisection import Search
from colocate.advice.forecast import Answer, Forecast
from colocate.device import Basis
from colocate.errors import PlanError
from colocate.plan import Catalog, Group, Override, Role, Training, Value, option_text, varied
from colocate.results import Attempt
from colocate.verdict import Outcome, PeakRange, Verdict

# A first step of this share of the start: predictions were within some percent of published measurements.
STRIDE_SHARE = 16

# Of a batch that neither plan nor catalog names: where `colocate predict` begins too.
USUAL_BATCH = 32

IDLE = "has not used the GPU"

MOST_TRIALS = 200  # a safety net: bisection of 65536 values takes 30, with confirmations


# --- what varies ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variable:
    """A number of one member that is to vary: a hyperparameter of the catalog, or an option of a command.

    ``given`` is its value in the plan; None where the plan leaves it to the program.
    """

    role: Role
    name: str
    kind: Literal["int", "float"]
    given: Value | None

    def __str__(self) -> str:
        return f"{self.role}.{self.name}"

    @property
    def start(self) -> int | float:
        """Return the value at which the search begins."""
        if isinstance(self.given, int | float):
            return self.given
        return USUAL_BATCH if "batch" in self.name else 1

    def override(self, value: Value) -> Override:
        """The change that sets it."""
        if self.name.startswith("-"):
            return Override(self.role, options={self.name: value})
        return Override(self.role, hyperparameters={self.name: value})


def variable(group: Group, text: str, catalog: Catalog | None) -> Variable:
    """Find the setting that ``foreground.batch_size`` or ``background.--max-len`` means in a group.

    Raises:
        PlanError: the group has no such member, or its training no such number.
    """
    role, _, name = text.partition(".")
    if role not in ("foreground", "background") or not name:
        raise PlanError(f"--vary: expected such as foreground.batch_size or background.--max-len, got {text!r}")
    member: Role = "foreground" if role == "foreground" else "background"
    training = group.training(member)
    if training is None:
        raise PlanError(f"--vary: expected a group with a {role}, {group.id} has none")
    if not training.uses_gpu:
        raise PlanError(f"--vary: expected a training that uses the GPU, {training.name} does not")
    if name.startswith("-"):
        given = option_value(training.argv, name)
        return Variable(member, name, "float" if isinstance(given, float) else "int", given)
    return _of_catalog(training, member, name, catalog)


def _of_catalog(training: Training, role: Role, name: str, catalog: Catalog | None) -> Variable:
    if training.repository is None or training.model is None or catalog is None:
        raise PlanError(f"--vary: {training.name} is a command; expected one of its options, such as {role}.--{name}")
    known = catalog.supported(training.repository, training.model)
    numbers = [one for one, kind in known.items() if kind.type != "str" and kind.flag is not None]
    if name not in numbers:
        raise PlanError(f"--vary: expected a number of {training.name} ({', '.join(numbers)}), got {name!r}")
    given = training.hyperparameters.get(name, known[name].of_program(training.model))
    return Variable(role, name, "int" if known[name].type == "int" else "float", given)


def option_value(argv: Sequence[str], option: str) -> int | float | None:
    """The number that a command line gives to an option; None without the option.

    Raises:
        PlanError: what it gives is no number.
    """
    text = option_text(argv, option)
    if text is None:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise PlanError(f"--vary: expected a number behind {option}, found {text!r}")


@dataclass(frozen=True)
class Grid:
    """The values that are looked at: from the least to the most, a step apart."""

    least: int | float
    most: int | float
    step: int | float

    @property
    def last(self) -> int:
        """The greatest place, counted from 0."""
        return int((self.most - self.least) / self.step + 1e-9)

    def value(self, place: int) -> int | float:
        """The value at a place."""
        value = self.least + place * self.step
        return value if isinstance(value, int) else round(value, 9)

    def place(self, value: float) -> int:
        """The place of a value, or of the next one below it; inside the grid."""
        return max(0, min(self.last, int((value - self.least) / self.step + 1e-9)))


# --- what comes of it -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """One value that was tried: a forecast, or a run of the group with its record."""

    value: int | float
    how: Literal["forecast", "run"]
    basis: Basis
    answer: Answer
    limit_bytes: int
    peak: PeakRange | None = None
    why: str = ""
    directory: str | None = None

    @property
    def is_final(self) -> bool:
        """No value of this program can be forecast."""
        return "cannot be emulated" in self.why or IDLE in self.why

    @property
    def headroom_bytes(self) -> int | None:
        """Limit minus the upper end of the peak."""
        return None if self.peak is None else self.limit_bytes - self.peak.high_bytes


@dataclass(frozen=True)
class Fit:
    """The answer. ``undecided`` are the ends of a range above ``largest`` of which nobody can say whether it fits.

    ``refused`` is the smallest value that does not fit; ``surprises`` are values that fit although a smaller one does
    not. ``confirmations`` are the runs at ``largest``, evaluation and last batch included, that were feasible.
    """

    variable: Variable
    basis: Basis
    largest: int | float | None
    refused: int | float | None
    undecided: tuple[int | float, int | float] | None
    confirmations: int
    at_most: bool
    surprises: tuple[tuple[int | float, int | float], ...]
    trials: tuple[Tried, ...]
    unpredicted: str | None = None

    @property
    def headroom_bytes(self) -> int | None:
        """The least headroom of the trials at the answer; of its runs where there are any."""
        own = [one for one in self.trials if one.value == self.largest and one.answer is Answer.FITS]
        runs = [one for one in own if one.how == "run"] or own
        return min((one.headroom_bytes for one in runs if one.headroom_bytes is not None), default=None)


# --- the search -------------------------------------------------------------------------------------------------------


@dataclass
class LargestValue:
    """The search for it on one GPU.

    Args:
        group: The group as the plan has it.
        variable: What varies.
        grid: The values that are looked at.
        catalog: Makes the command lines.
        basis: Whether runs are measured or predicted.
        foresee: Forecasts a group on the virtual GPU.
        attempt: Runs a group; the number says which run of this value it is, from 1.
        confirmations: How many further runs the answer must hold in.
        tell: Called with every trial.
    """

    group: Group
    variable: Variable
    grid: Grid
    catalog: Catalog | None
    basis: Basis
    foresee: Callable[[Group], Forecast]
    attempt: Callable[[Group, int], Attempt]
    confirmations: int
    tell: Callable[[Tried], None] = lambda tried: None
    trials: list[Tried] = field(default_factory=list)
    _places: list[int] = field(default_factory=list)
    _runs: dict[int, int] = field(default_factory=dict)

    def find(self) -> Fit:
        """Search, confirm, and say what is known.

        Raises:
            ColocateError: the GPU cannot be used, or a record not be written.
        """
        start = self.grid.place(self.variable.start)
        foreseen = Search(start, self.grid.last, max(1, start))
        unpredicted = self._look_ahead(foreseen)
        if self.basis == "predicted":
            if unpredicted is None:
                self._settle(foreseen, self._forecast)
            return self._fit(foreseen, unpredicted)
        first = start if foreseen.good is None else foreseen.good
        tried = Search(first, self.grid.last, max(1, first // STRIDE_SHARE))
        self._settle(tried, self._run)
        return self._fit(tried, unpredicted)

    def group_at(self, place: int) -> Group:
        """The group with the value at a place; named after it, so that its records are told apart."""
        value = self.grid.value(place)
        if place not in self._places:
            self._places.append(place)
        changed = varied(self.group, self.variable.override(value), self.catalog)
        name = f"{self.group.id}-{str(value).replace('.', '_')}"
        return replace(changed, id=name, number=self._places.index(place) + 1, runs=1)

    def _look_ahead(self, search: Search) -> str | None:
        """Forecast until the turn is known; why that is not possible, or None."""
        while (place := search.next()) is not None and len(self.trials) < MOST_TRIALS:
            search.tell(place, self._forecast(place))
            if search.is_hopeless or (search.known[place] is Answer.UNKNOWN and self.trials[-1].is_final):
                return self.trials[-1].why
        return None

    def _settle(self, search: Search, ask: Callable[[int], Answer]) -> None:
        """Try until the turn is known, its neighbours agree, and the answer was confirmed."""
        while len(self.trials) < MOST_TRIALS and not search.is_hopeless:
            place = search.next()
            if place is not None:
                search.tell(place, ask(place))
                continue
            beside = search.neighbours()
            for neighbour in beside:
                search.tell(neighbour, ask(neighbour))
            if beside:
                continue
            if search.good is None or self._is_confirmed(search, search.good):
                return
            ask = self._run  # where a run says otherwise than a forecast, or than a run before it, runs decide

    def _is_confirmed(self, search: Search, place: int) -> bool:
        for _ in range(self.confirmations):
            answer = self._run(place)
            if answer is not Answer.FITS:
                search.tell(place, answer)
                return False
        return True

    def _forecast(self, place: int) -> Answer:
        """Forecast a value by dry runs; a program that failed is run a second time."""
        for _ in range(2):
            found = self.foresee(self.group_at(place))
            answer, value, limit = found.answer, self.grid.value(place), found.limit_bytes
            why = "; ".join([*found.failures, *found.doubts])
            self._note(Tried(value, "forecast", "predicted", answer, limit, found.peak, why))
            if answer is not Answer.UNKNOWN or self.trials[-1].is_final:
                break
        return answer

    def _run(self, place: int) -> Answer:
        """Run the group with a value; a run without a verdict is repeated once."""
        for _ in range(2):
            number = self._runs[place] = self._runs.get(place, 0) + 1
            attempt = self.attempt(self.group_at(place), number)
            answer = answer_of(attempt.verdict)
            self._note(tried_of(self.grid.value(place), attempt))
            if answer is not Answer.UNKNOWN:
                break
        return answer

    def _note(self, tried: Tried) -> None:
        self.trials.append(tried)
        self.tell(tried)

    def _fit(self, search: Search, unpredicted: str | None) -> Fit:
        value, undecided = self.grid.value, search.open
        good, bad = search.good, search.bad
        runs = [one for one in self.trials if one.how == "run" and good is not None and one.value == value(good)]
        low = 0 if good is None else good + 1
        high = self.grid.last if bad is None else bad - 1
        return Fit(
            variable=self.variable,
            basis=self.basis,
            largest=None if good is None else value(good),
            refused=None if bad is None else value(bad),
            undecided=(value(low), value(high)) if undecided else None,
            confirmations=sum(one.answer is Answer.FITS for one in runs),
            at_most=good == self.grid.last,
            surprises=tuple((value(place), value(below)) for place, below in search.surprises),
            trials=tuple(self.trials),
            unpredicted=unpredicted,
        )


def answer_of(verdict: Verdict) -> Answer:
    """Translate a verdict into an answer; an inconclusive run counts neither as fitting nor as not fitting."""
    if verdict.outcome is Outcome.FEASIBLE:
        return Answer.FITS
    if verdict.outcome is Outcome.INFEASIBLE:
        return Answer.DOES_NOT_FIT
    return Answer.UNDECIDED if "undecided" in verdict.codes else Answer.UNKNOWN


def tried_of(value: int | float, attempt: Attempt) -> Tried:
    """A run as a trial."""
    verdict = attempt.verdict
    return Tried(
        value,
        "run",
        verdict.basis,
        answer_of(verdict),
        verdict.limit_bytes,
        _peak(verdict),
        ", ".join(verdict.codes),
        attempt.directory.path.name,
    )


def _peak(verdict: Verdict) -> PeakRange | None:
    known = (verdict.peak_low_bytes, verdict.peak_bytes, verdict.peak_high_bytes)
    low, expected, high = known
    return None if low is None or expected is None or high is None else PeakRange(low, expected, high)
