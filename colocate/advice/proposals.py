# SPDX-License-Identifier: Apache-2.0
"""Propose what could be tried where a group does not fit, in order of cost, each as a change of one setting.

Pure: group, evidence and catalog in, proposals out. What a proposal would bring is `advice.proposal_forecasts`'s
business, how it is shown the report's.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from colocate.errors import PlanError
from colocate.plan import Catalog, Group, Hyperparameter, Override, Role, Training, Value, option_text, varied
from colocate.results import GroupResult
from colocate.units import MIB, format_mib
from colocate.verdict import Allocator, Evidence, Member, PeakRange, member_range, own_peak_bytes

# What more or less memory can mend. A foreground that failed for another reason has no remedy here.
MEMORY = frozenset({"foreground_out_of_memory", "background_out_of_memory", "peak_over_limit"})

# Reasons that a smaller appetite can take away. A failed program or a full host is another matter.
TOO_MUCH = MEMORY | {"peak_between_samples", "undecided"}

# Memory that the allocator keeps but no tensor uses; below this, expandable segments have nothing to gain.
FRAGMENTS_BYTES = 256 * MIB

ALLOCATOR_SETTINGS = "PYTORCH_CUDA_ALLOC_CONF"
EXPANDABLE = "expandable_segments:True"

# Other models of a repository are tried one by one, and each costs a dry run.
MOST_MODELS = 3


class Kind(StrEnum):
    """The kinds of proposals in order of cost: first what costs only time, last what is another training."""

    MEASURE = "measure"
    BATCH = "smaller batch"
    ATTENTION = "fused attention"
    SEGMENTS = "expandable segments"
    PRECISION = "mixed precision"
    CHECKPOINTING = "gradient checkpointing"
    MODEL = "smaller model"


@dataclass(frozen=True)
class Step:
    """One setting of a proposal: the override, how to write it, and what it means for the training."""

    override: Override
    settings: str
    why: str


@dataclass(frozen=True)
class Proposal:
    """One thing to try in one training.

    ``steps`` are its settings from the mildest on, such as half the batch, a quarter of it; the first that fits is the
    one to take. Empty where nobody here can make the change, such as inside a program of one's own.
    """

    kind: Kind
    role: Role | None
    training: str
    steps: tuple[Step, ...] = ()
    advice: str = ""

    def text(self, step: Step | None = None) -> str:
        """The proposal in words, with one of its steps, the mildest by default."""
        shown = step or next(iter(self.steps), None)
        said = self.advice if shown is None else f"{shown.settings} {shown.why}"
        return f"{self.training}: {said}" if self.training else said

    @property
    def rising(self) -> bool:
        """Every step needs less memory than the one before, so that the first that fits can be bisected."""
        return self.kind is Kind.BATCH


def proposals(
    group: Group, evidence: Evidence, catalog: Catalog | None, known: Mapping[tuple[str, str], int] | None = None
) -> list[Proposal]:
    """List what could be tried, the cheapest first; of two of a kind, the one in the larger training first.

    A member without which the others are too much already is left alone: nothing in it helps.

    Args:
        group: The group as it was run.
        evidence: What was seen; the samples are not needed.
        catalog: That of the plan; None where there is none.
        known: Bytes that a model is known to hold, by repository and model; larger ones are not proposed.
    """
    roles = _roles_that_matter(group, evidence)
    found = [one for role in roles for one in _of_member(group, role, evidence, catalog, known or {})]
    order = list(Kind)
    first = [_measure()] if _is_undecided(group, evidence) else []
    return first + sorted(found, key=lambda one: order.index(one.kind))  # stable: the larger member stays ahead


def held_bytes(member: Member, *, virtual: bool) -> int | None:
    """The most that a member held, or on a virtual GPU wanted; None where nobody told."""
    if virtual:
        wanted = member_range(member)
        return None if wanted is None else wanted.expected_bytes
    return max(filter(None, (own_peak_bytes(member), member.held_bytes)), default=None)


def _roles_that_matter(group: Group, evidence: Evidence) -> list[Role]:
    virtual = evidence.device.kind == "virtual"
    held: dict[Role, int] = {one.role: held_bytes(one, virtual=virtual) or 0 for one in evidence.members}
    using = [role for role in held if (training := group.training(role)) is not None and training.uses_gpu]
    using.sort(key=lambda role: -held[role])
    limit_bytes, base_bytes = group.limits.peak_bytes, evidence.baseline_bytes or 0
    without = {role: base_bytes + sum(held[other] for other in using if other != role) for role in using}
    return using[:1] + [role for role in using[1:] if without[role] < limit_bytes]


def _is_undecided(group: Group, evidence: Evidence) -> bool:
    """The range of a prediction lies across the limit."""
    ranges = [member_range(member) for member in evidence.members if member.uses_gpu]
    if evidence.device.kind != "virtual" or any(range_ is None for range_ in ranges):
        return False
    base = evidence.baseline_bytes or 0
    whole = sum(filter(None, ranges), start=PeakRange(base, base, base))
    return whole.low_bytes < group.limits.peak_bytes <= whole.high_bytes


def _measure() -> Proposal:
    advice = "measure it: the prediction's range lies across the limit, a GPU decides"
    return Proposal(Kind.MEASURE, None, "", advice=advice)


def _of_member(
    group: Group, role: Role, evidence: Evidence, catalog: Catalog | None, known: Mapping[tuple[str, str], int]
) -> Iterator[Proposal]:
    training, member = group.training(role), evidence.member(role)
    assert training is not None, "a member that was seen has a training"
    assert member is not None, "and the other way round"
    settings = _Settings(training, role, catalog)
    yield from _smaller_batch(settings)
    yield from _of_hyperparameters(settings)
    yield from _segments(settings, member)
    own = held_bytes(member, virtual=evidence.device.kind == "virtual")
    yield from _smaller_model(group, settings, own, known)


# --- what a training can be told --------------------------------------------------------------------------------------

# Hyperparameters and options go by many names; "-" and "_" are the same here.
BATCH = ("batch_size", "train_batch_size", "per_device_train_batch_size", "per_gpu_train_batch_size", "bs")
ACCUMULATE = ("accumulate", "gradient_accumulation_steps", "accumulation_steps", "grad_accumulation_steps")
ATTENTION = ("attention", "attn_implementation")
PRECISION = ("fp16", "bf16", "amp", "mixed_precision")
CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing", "checkpointing")
_FUSED = ("sdpa", "flash_attention_2", "flash")
_ON = ("on", "true", "yes", "1")


class _Settings:
    """The settings that one training accepts, whether it is one of the catalog or a command with options."""

    def __init__(self, training: Training, role: Role, catalog: Catalog | None) -> None:
        self.training = training
        self.role: Role = role
        self.catalog = catalog
        self.of_catalog = catalog is not None and training.repository is not None and training.model is not None
        self.supported: Mapping[str, Hyperparameter] = (
            catalog.supported(str(training.repository), str(training.model)) if catalog and self.of_catalog else {}
        )

    def name(self, names: Sequence[str]) -> str | None:
        """The training's own word for one of these: a hyperparameter that has an option, or an option in use."""
        if self.of_catalog:
            return next((name for name in names if name in self.supported and self.supported[name].flag), None)
        written = [word.partition("=")[0] for word in self.training.argv[1:] if word.startswith("-")]
        return next((word for word in written if word.lstrip("-").replace("-", "_") in names), None)

    def value(self, name: str) -> Value | None:
        """Return the present value: the plan's, else the program's default if the catalog knows it."""
        if not self.of_catalog:
            text = option_text(self.training.argv, name)
            return int(text) if text is not None and text.isdecimal() else text or None
        given = self.training.hyperparameters.get(name)
        return given if given is not None else self.supported[name].of_program(str(self.training.model))

    def step(self, values: Mapping[str, Value], why: str) -> Step:
        """The change to these values."""
        if self.of_catalog:
            reported = ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
            return Step(Override(self.role, values), reported, why)
        reported = " ".join(f"{option} {value}" for option, value in values.items())
        return Step(Override(self.role, options=values), reported, why)

    def proposal(self, kind: Kind, *steps: Step, advice: str = "") -> Proposal:
        """A proposal for this training."""
        return Proposal(kind, self.role, self.training.name, steps, advice)


# --- the kinds --------------------------------------------------------------------------------------------------------


def _smaller_batch(settings: _Settings) -> Iterator[Proposal]:
    batch = settings.name(BATCH)
    if batch is None:
        if not settings.of_catalog:
            advice = "a smaller batch with gradient accumulation, in its own command"
            yield settings.proposal(Kind.BATCH, advice=advice)
        return
    size = settings.value(batch)
    if not isinstance(size, int):
        yield settings.proposal(Kind.BATCH, advice=f'half its "{batch}", which is not written in the plan')
    elif size > 1:
        yield settings.proposal(Kind.BATCH, *_smaller(settings, batch, size))


def _smaller(settings: _Settings, batch: str, size: int) -> Iterator[Step]:
    accumulate = settings.name(ACCUMULATE)
    now = settings.value(accumulate) if accumulate else None
    effective = size * now if isinstance(now, int) else size
    for smaller in halvings(size, effective):
        if accumulate is None:
            yield settings.step({batch: smaller}, f"in place of {size}, which trains differently")
            continue
        bites = max(1, round(effective / smaller))
        why = f"keeps the effective batch of {effective}"
        if bites * smaller != effective:
            why = f"has an effective batch of {bites * smaller} in place of {effective}"
        yield settings.step({batch: smaller, accumulate: bites}, f"{why}, and takes longer")


def halvings(size: int, effective: int) -> Iterator[int]:
    """About half of a batch, a quarter and so on down to one sample; divisors of the effective batch where near."""
    while size > 1:
        half = size // 2
        exact = next((smaller for smaller in range(half, half // 2, -1) if effective % smaller == 0), half)
        size = max(1, exact)
        yield size


def _of_hyperparameters(settings: _Settings) -> Iterator[Proposal]:
    """Propose what the catalog has a hyperparameter for, if it is not set so already."""
    if not settings.of_catalog:
        return
    kinds = (
        (Kind.ATTENTION, ATTENTION, _FUSED, "keeps no attention matrices"),
        (Kind.PRECISION, PRECISION, _ON, "halves most activations"),
        (Kind.CHECKPOINTING, CHECKPOINTING, _ON, "keeps few activations and computes the others again"),
    )
    for kind, names, wanted, why in kinds:
        name = settings.name(names)
        value = None if name is None else _wanted(settings.supported[name], wanted)
        if name is not None and value is not None and settings.value(name) != value:
            yield settings.proposal(kind, settings.step({name: value}, why))


def _wanted(kind: Hyperparameter, values: Sequence[str]) -> Value | None:
    """The value that a hyperparameter has for one of these; None where it has no such value."""
    if kind.type == "str":
        return next((value for value in values if value in (kind.choices or ())), None)
    return 1 if "1" in values else None


def _segments(settings: _Settings, member: Member) -> Iterator[Proposal]:
    """Propose less fragmentation where the allocator reserved much more than tensors used."""
    before = settings.training.env.get(ALLOCATOR_SETTINGS, "")
    reused = max((_fragments_bytes(one) for one in (*member.allocators, *member.wanted)), default=0)
    if EXPANDABLE in before or reused <= FRAGMENTS_BYTES:
        return
    value = f"{before},{EXPANDABLE}" if before else EXPANDABLE
    why = f"in its environment; its allocator kept {format_mib(reused)} beyond the most that its tensors used"
    step = Step(Override(settings.role, env={ALLOCATOR_SETTINGS: value}), f"{ALLOCATOR_SETTINGS}={value}", why)
    yield settings.proposal(Kind.SEGMENTS, step)


def _fragments_bytes(allocator: Allocator) -> int:
    return (allocator.max_reserved_bytes or 0) - (allocator.max_allocated_bytes or allocator.max_reserved_bytes or 0)


def _smaller_model(
    group: Group, settings: _Settings, own_bytes: int | None, known: Mapping[tuple[str, str], int]
) -> Iterator[Proposal]:
    """Other models of the same repository, those first that are known to be smaller, and of those the largest."""
    training, catalog = settings.training, settings.catalog
    if catalog is None or not settings.of_catalog:
        return
    repository = str(training.repository)
    sizes = {other: known.get((repository, other)) for other in _others(catalog, repository) if other != training.model}
    smaller = [other for other, size in sizes.items() if size is None or own_bytes is None or size < own_bytes]
    smaller.sort(key=lambda other: -(sizes[other] or 0))
    found = (_of_model(group, settings, other, sizes[other]) for other in smaller)
    steps = [step for step in found if step is not None][:MOST_MODELS]
    if steps:
        yield settings.proposal(Kind.MODEL, *steps)


def _others(catalog: Catalog, repository: str) -> Sequence[str]:
    spec = catalog.repositories.get(repository)
    return spec.models if spec else ()


def _of_model(group: Group, settings: _Settings, model: str, size: int | None) -> Step | None:
    """The change to another model; None for one that cannot be run."""
    override = Override(settings.role, model=model)
    try:
        other = varied(group, override, settings.catalog)
    except PlanError:
        return None
    training = other.training(settings.role)
    if training is None or training.missing:
        return None
    lost = [name for name in settings.training.hyperparameters if name not in training.hyperparameters]
    why = "in its place" + (f", without {', '.join(lost)}" if lost else "")
    why += f"; it needed {format_mib(size)} in this run" if size is not None else ""
    return Step(override, f'"model": {json.dumps(model)}', why)


def is_unfit(result: GroupResult) -> bool:
    """A group that needed too much of the GPU's memory, or may have; less memory helps nothing else."""
    return not TOO_MUCH.isdisjoint(result.codes)
