# SPDX-License-Identifier: Apache-2.0
"""Decide which groups ``--resume`` reuses, and why the others run again.

A group is kept when its verdict is on disk, follows from its record, and nothing changed that decides how it runs:
settings and command (`Group.content_hash`), package versions, kind and size of the GPU. What was interrupted, or
spoiled by something that may be gone now, is run again; what was never started is started.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from colocate.device import DeviceInfo, FoundGpu, Quarantine, as_asked
from colocate.errors import ColocateError
from colocate.files import write_json
from colocate.harness.gpu_processes import is_unwatched
from colocate.plan import ROLES, Group, is_of_size
from colocate.process import boot_id, describe, end, with_cookie
from colocate.results import (
    QUEUE,
    Attempt,
    GroupDirectory,
    GroupResult,
    RunDirectory,
    RunRecord,
    combine_attempts,
    group_results,
    judge_record,
    packages,
)

# Ends of an attempt that say nothing about the group and that somebody may have mended meanwhile.
SPOILED = frozenset(
    {
        *("interrupted", "supervisor_lost", "log_failed", "disk_full", "unkillable", "record_damaged"),
        *("sensor_lost", "sensor_gap", "sensor_contradicted", "probe_lost", "no_samples", "no_baseline"),
        *("foreign_process", "gpu_not_returned", "slow_pattern"),
    }
)
_GRACE_S = 2.0

MOST_REPORTED = 20  # groups of which the same is to be said are told one by one up to this number


@dataclass(frozen=True)
class Decision:
    """The decision for one group: reused with its verdict, or run; ``done`` are runs that need not be repeated."""

    group: str
    why: str
    reused: GroupResult | None = None
    done: tuple[Attempt, ...] = ()

    def __str__(self) -> str:
        return f"{self.group} {'reused' if self.reused else 'runs'}: {self.why}"


def find_run(results: Path, name: str, plan: str) -> RunDirectory:
    """The run of this name below the results or at this path; for an empty name the latest of this plan.

    Raises:
        ColocateError: there is none, or it is of another plan.
    """
    if name:
        for path in (results / name, Path(name)):
            if (path / "run.json").is_file():
                run = RunDirectory(path.resolve())
                if (found := RunRecord.of(run).plan.name) != plan:
                    raise ColocateError(f"{run.path}: expected a run of {plan}, found one of {found}")
                return run
        raise ColocateError(
            f"--resume={name}: expected a run directory, found no run.json in it or in {results / name}"
        )
    records = sorted(results.glob("run_*/run.json"), key=lambda it: (it.stat().st_mtime_ns, it.parent.name))
    runs = [RunDirectory(record.parent.resolve()) for record in records]
    for run in reversed(runs):
        if RunRecord.of(run).plan.name == plan:
            return run
    raise ColocateError(f"--resume: expected a run of {plan} below {results}, found none; start one without --resume")


def take_up(run: RunDirectory) -> list[str]:
    """Make a run fit to go on, by whoever holds its lock; what was done, a line each.

    Trainings of the run that nobody watches any more are ended, a record that only lacks its verdict gets it, the
    quarantine of GPUs is lifted, and nothing waits in a queue any more.

    Raises:
        OSError: the disk is full or gone.
    """
    lines = []
    orphans = [process for process in with_cookie(run.name) if is_unwatched(process)]
    if orphans:
        lines.append("ended what the run had left: " + "; ".join(describe(process.pid) for process in orphans))
        end(orphans, _GRACE_S)
    for experiment in sorted(run.path.glob("*/experiment.json")):
        directory = GroupDirectory(experiment.parent)
        with suppress(ColocateError):
            if not directory.verdict.exists():
                write_json(directory.verdict, judge_record(directory.path).to_json())
                lines.append(f"{directory.path.name}: judged from its record, which was whole")
    Quarantine(run.quarantine).lift()
    (run.path / QUEUE).unlink(missing_ok=True)
    return lines


def decide(run: RunDirectory, groups: Iterable[Group], gpus: Iterable[FoundGpu]) -> tuple[Decision, ...]:
    """Decide for every group of the plan, in its order, whether its verdict is reused."""
    found, allowed = group_results(run, every=True), tuple(gpus)
    rebooted = RunRecord.of(run).latest.boot_id not in (None, boot_id())
    return tuple(_decide(run, group, found.get(group.id), allowed, rebooted) for group in groups)


def reported(decisions: Sequence[Decision]) -> list[str]:
    """A line for each decision, in the plan's order; of very many alike one for all of them."""
    alike: dict[tuple[bool, str], list[str]] = {}
    for one in decisions:
        alike.setdefault((one.reused is not None, one.why), []).append(one.group)
    many = {what: names for what, names in alike.items() if len(names) > MOST_REPORTED}
    lines = [
        f"{len(names)} groups from {names[0]} to {names[-1]} {'reused' if reused else 'run'}: {why}"
        for (reused, why), names in many.items()
    ]
    return [*lines, *(str(one) for one in decisions if (one.reused is not None, one.why) not in many)]


def _decide(
    run: RunDirectory, group: Group, found: GroupResult | None, gpus: tuple[FoundGpu, ...], rebooted: bool
) -> Decision:
    if found is None:
        return Decision(group.id, _why_without_verdict(run, group, rebooted))
    why = [_why_again(attempt, group, gpus) for attempt in found.last]
    sound = tuple(attempt for attempt, reason in zip(found.last, why, strict=True) if reason is None)
    if len(sound) < len(why):
        return Decision(group.id, next(filter(None, why)), done=sound)
    if len(sound) < group.runs:
        return Decision(group.id, f"{len(sound)} of its {group.runs} runs are done", done=sound)
    reused = combine_attempts([attempt for attempt in found.attempts if attempt.place[0] <= group.runs], group.runs)
    return Decision(group.id, f"{reused.outcome}, and nothing changed since", reused=reused)


def _why_without_verdict(run: RunDirectory, group: Group, rebooted: bool) -> str:
    parallel = group.background is not None
    directory = run.group(group.foreground.name, group.number, parallel=parallel)
    if directory.verdict.exists():
        return "its record is damaged"
    if not directory.path.exists():
        return "it was never started"
    return "it was interrupted" + (", and the machine was started anew since" if rebooted else "")


def _why_again(attempt: Attempt, group: Group, gpus: tuple[FoundGpu, ...]) -> str | None:
    """Say why an attempt no longer counts, or None if it does."""
    if attempt.group.content_hash != group.content_hash:
        return f"its settings changed{_changed_words(attempt, group)}"
    if changed := _changed_versions(attempt.evidence.versions):
        return f"versions changed: {', '.join(changed)}"
    device = attempt.evidence.device
    suited = [found for gpu in gpus if (found := as_asked(gpu, group.gpu)) is not None]
    if gpus and not any(_is_same(gpu, device) for gpu in suited):
        return f"it ran on another GPU, {device.name}"
    if spoiled := [code for code in attempt.verdict.codes if code in SPOILED]:
        return f"it was spoiled: {', '.join(spoiled)}"
    try:
        again = judge_record(attempt.directory.path)
    except ColocateError:
        return "its record is damaged"
    if "record_damaged" in again.codes:
        return "its record is damaged"
    return None if again == attempt.verdict else "its verdict does not follow from its record"


def _changed_words(attempt: Attempt, group: Group) -> str:
    """The first word of a command line that is another one now; empty where the change is elsewhere."""
    virtual = attempt.evidence.device.kind == "virtual"
    for role, training in zip(ROLES, group.trainings, strict=False):
        now, member = training.command(repeat=role == "background", dry_run=virtual), attempt.evidence.member(role)
        for then, word in zip_longest(member.argv if member else (), now, fillvalue="nothing"):
            if then != word:
                return f": {training.name} has {word} in place of {then}"
    return ""


def _changed_versions(then: Mapping[str, str]) -> list[str]:
    now = packages()
    names = (name for name in sorted((now.keys() | then.keys()) - {"kernel"}) if then.get(name) != now.get(name))
    return [f"{name} {then.get(name, 'none')} to {now.get(name, 'none')}" for name in names]


def _is_same(gpu: FoundGpu, device: DeviceInfo) -> bool:
    """The same GPU, used as what it is or as the same smaller one."""
    if gpu.kind != device.kind:
        return False
    if gpu.uuid is None or device.balloon is not None:
        return gpu.uuid in (None, device.uuid) and gpu.total_bytes == device.total_bytes
    return gpu.uuid == device.uuid and (gpu.total_bytes is None or is_of_size(device.total_bytes, gpu.total_bytes))
