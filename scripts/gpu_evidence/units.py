# SPDX-License-Identifier: Apache-2.0
"""The units of work: each takes minutes at most, writes one result, and is not done again once that says so."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from colocate import __version__
from colocate.advice import forecast, needed, program_of
from colocate.harness import simulate
from colocate.plan import VIRTUAL, Group, model_called, model_of_size, solo_group, table
from colocate.results import Attempt, packages
from gpu_evidence import kill, overhead, smi
from gpu_evidence.bench import Bench, distinct, is_ours, shortened

Result = dict[str, Any]

# The groups that say most: the plan's own question, then those that it thinks the hardest.
FIRST = (12, 9, 7, 5)
_CAPABILITY = "import torch; print(*torch.cuda.get_device_capability(), sep='.')"

DONE, CUT, AGAIN = "done", "cut", "again"


@dataclass(frozen=True)
class Unit:
    """One piece of work: its name, how many seconds it should at least have, and what it does."""

    name: str
    least_s: float
    work: "Work"


Work = Callable[[Bench, Result | None], Result]
"""Does a unit; it is handed what an earlier call left of it, if there was one."""


def units(bench: Bench) -> list[Unit]:
    """All units in the order in which they are worth most."""
    ordered = _ordered(list(bench.plan.groups))
    first, rest = ordered[: len(FIRST)], ordered[len(FIRST) :]
    return [
        Unit("machine", 5, _plain(machine)),
        *(_solo(name) for name in distinct(bench.plan.groups)),
        Unit("smi", 30, _plain(smi.compare)),
        *(_group("small", group) for group in first),
        Unit("kill", 30, _plain(kill.under_load)),
        Unit("overhead_sampler", 40, _plain(overhead.of_the_sampler)),
        Unit("overhead_probe", 60, _plain(overhead.of_the_probe)),
        *(_group("whole", group) for group in first),
        *(_group("small", group) for group in rest),
        *(_group("whole", group) for group in rest),
        Unit("predictions", 60, _plain(predictions)),
    ]


def _plain(work: Callable[[Bench], Result]) -> Work:
    """What does not care whether it was tried before."""
    return lambda bench, earlier: work(bench)


def _ordered(groups: list[Group]) -> list[Group]:
    place = {number: index for index, number in enumerate(FIRST)}
    return sorted(groups, key=lambda group: (place.get(group.number, len(place)), group.number))


# --- what the machine is


def machine(bench: Bench) -> Result:
    """The doctor's findings, versions, and what nvidia-smi says."""
    doctor = _said([sys.executable, "-m", "colocate", "doctor", f"--plan={bench.plan.path}"], bench)
    found: Result = {
        "state": DONE,
        "gpu": bench.info.name,
        "total_bytes": bench.info.total_bytes,
        "driver": bench.info.driver_version,
        "cuda": bench.info.cuda_version,
        "memory_source": bench.info.memory_source,
        "accounting": bench.info.accounting,
        "versions": {"colocate": __version__, **packages(), "kernel": platform.release()},
        "processors": len(os.sched_getaffinity(0)),
        "doctor": doctor,
    }
    capability = re.search(r"^\d+\.\d+$", _said([sys.executable, "-c", _CAPABILITY], bench), re.MULTILINE)
    found["capability"] = capability[0] if capability else None
    if shutil.which("nvidia-smi"):
        found["nvidia_smi"] = _said(["nvidia-smi"], bench)
    return found


def _said(argv: list[str], bench: Bench) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(_root()), os.environ.get("PYTHONPATH")]))}
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, env=env, cwd=_root())
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{argv[0]}: {error}"
    return (done.stdout + done.stderr).strip()


def _root() -> Path:
    return Path(__file__).parents[2]


# --- trainings alone


def _solo(name: str) -> Unit:
    def work(bench: Bench, earlier: Result | None) -> Result:
        training, group = distinct(bench.plan.groups)[name]
        if not training.uses_gpu:
            return {"state": DONE, "text": "does not use the GPU"}
        short = shortened(training, bench.options.steps)
        number = _number(bench, name)
        group = replace(group, id=f"solo{number:02d}", number=number)
        attempt = bench.attempt("solo", solo_group(short, group), bench.gpu)
        return {**summary(attempt), "program": name, "cut_to_steps": bench.options.steps if short != training else None}

    return Unit(f"solo {name}", 25, work)


def _number(bench: Bench, name: str) -> int:
    """Part of the folder's name, so that two programs of one name do not share it."""
    return list(distinct(bench.plan.groups)).index(name) + 1


# --- groups


def _group(kind: str, group: Group) -> Unit:
    def work(bench: Bench, earlier: Result | None) -> Result:
        if group.missing:
            return {"state": DONE, "text": group.missing}
        wanted = group
        cut = is_ours(group.foreground) and earlier is not None  # one whole call was not enough for its epoch
        if cut:
            wanted = replace(group, foreground=shortened(group.foreground, bench.options.steps))
        had_s = bench.left_s
        attempt = bench.attempt(kind, wanted, bench.small if kind == "small" else bench.gpu)
        found = summary(attempt)
        if "foreground_timeout" in found["codes"] and not cut:
            return {**found, "state": AGAIN, "text": f"its epoch did not end within the {had_s:.0f} s that were left"}
        return {**found, "cut_to_steps": bench.options.steps if cut else None, "state": CUT if cut else DONE}

    return Unit(f"{kind} {group.id}", 45, work)


def summary(attempt: Attempt) -> Result:
    """The figures of one attempt; sizes in bytes, None where nothing was read."""
    verdict, evidence = attempt.verdict, attempt.evidence
    members = {
        member.role: {
            "name": member.name,
            "reserved_bytes": max((one.max_reserved_bytes or 0 for one in member.allocators), default=0) or None,
            "allocated_bytes": max((one.max_allocated_bytes or 0 for one in member.allocators), default=0) or None,
            "listed_bytes": member.held_bytes,
            "optimizer_steps": sum(one.optimizer_steps for one in member.allocators),
            "out_of_memory": len(member.out_of_memory),
            "retries": sum(one.num_alloc_retries for one in member.allocators),
            "phases": sorted({event.phase for event in member.progress_events if event.phase}),
        }
        for member in evidence.members
    }
    return {
        "state": DONE,
        "outcome": str(verdict.outcome),
        "basis": verdict.basis,
        "codes": list(verdict.codes),
        "reasons": [reason.text for reason in verdict.reasons],
        "peak_bytes": verdict.peak_bytes,
        "sampled_bytes": next((one.used_bytes for one in verdict.peaks if one.source == "samples"), None),
        "baseline_bytes": evidence.baseline_bytes,
        "final_bytes": evidence.final_bytes,
        "limit_bytes": verdict.limit_bytes,
        "overlap": verdict.overlap,
        "duration_s": evidence.duration_s,
        "epoch_cut": verdict.epoch_cut,
        "expected_bytes": attempt.group.expected_bytes,
        "gpu": evidence.device.name,
        "driver": evidence.device.driver_version,
        "balloon": None if evidence.device.balloon is None else asdict(evidence.device.balloon),
        "members": members,
        "record": f"{attempt.directory.run.name}/{attempt.directory.path.name}",
        "sampling": {name: getattr(evidence.trace, name) for name in ("missed_ticks", "reading_s", "duration_s")},
    }


# --- predictions for the same programs


def predictions(bench: Bench) -> Result:
    """What the emulation says of the same programs on this machine's PyTorch, for the GPU's row of the table."""
    groups = [group for group in bench.plan.groups if not group.missing]
    trainings = needed(groups)
    gpu = _row_of(bench)
    found = simulate([program_of(one) for one in trainings], gpu, cache=None, timeout_s=max(30.0, bench.left_s / 2))
    known = {program_of(one): result for one, result in zip(trainings, found, strict=True)}
    names = {name: training for name, (training, _) in distinct(groups).items()}
    base = 0 if bench.gpu.kind == "nvidia" else gpu.baseline_bytes
    said: Result = {
        "state": DONE,
        "row": gpu.name,
        "context_bytes": gpu.context_bytes,
        "context_range_bytes": gpu.context_range_bytes,
        "programs": {},
        "groups": {},
    }
    for name, training in names.items():
        result = known.get(program_of(training))
        if result is not None:
            said["programs"][name] = {"peak": _range(result.peak), "failure": result.failure}
    for group in groups:
        reported = forecast(group, known, base, group.limits.peak_bytes)
        said["groups"][group.id] = {"peak": _range(reported.peak), "answer": str(reported.answer)}
    return said


def _row_of(bench: Bench) -> Any:
    """The row of the table whose name is in the GPU's, else that of any size."""
    plain = bench.info.name.lower()
    for row in table().gpus:
        words = row.name.lower().replace("nvidia", "").split()
        if words and all(word in plain for word in words):
            return model_called(row.name + VIRTUAL, row.total)
    return model_of_size(bench.info.total_bytes)


def _range(peak: Any) -> list[int] | None:
    return None if peak is None else [peak.low_bytes, peak.expected_bytes, peak.high_bytes]


def file_name(name: str) -> str:
    """A name as a file's."""
    return "".join(c if c.isalnum() or c in "-_.=" else "_" for c in name)[:120]
