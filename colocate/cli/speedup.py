# SPDX-License-Identifier: Apache-2.0
"""``colocate speedup``: whether sharing a GPU was worth it, together against one after the other."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colocate.cli import common as command
from colocate.cli.arguments import group_named, whole
from colocate.errors import ColocateError, PlanError

if TYPE_CHECKING:
    from colocate.advice import GroupSpeedup, Speedup
    from colocate.device import FoundGpu
    from colocate.plan import Group
    from colocate.results import GroupResult


def add(commands: command.Commands) -> None:
    """Declare the arguments."""
    parser = command.new(
        commands,
        "speedup",
        "Compare the feasible groups of a run with their trainings one after the other; runs those alone on the GPU.",
        "colocate speedup results/run_20261124_053000 -k group07",
    )
    parser.add_argument("directory", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("-k", "--group", action="append", metavar="ID", help="only these groups")
    parser.add_argument("--repeat", type=whole, default=1, metavar="N", help="runs of each training alone (1)")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="the run's plan, if it has been moved")
    command.takes_wait(parser)
    parser.add_argument("--no-cache", action="store_true", help="run everything alone again, and remember nothing")
    parser.add_argument("--stored", action="store_true", help="only tell what an earlier call found; runs nothing")
    command.takes_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """A line per group; a finding where one is known not to be worth it, undecided where one is not known."""
    from colocate.report import write_summary
    from colocate.results import RunDirectory, group_results

    directory = RunDirectory(options.directory)
    if not directory.record.exists():
        raise ColocateError(f"{options.directory}: expected a run directory, found no run.json in it")
    groups = group_results(directory)
    names = options.group or list(groups)
    wanted = [meant for name in names if (meant := group_named(name, tuple(groups)))]
    if not wanted or len(wanted) < len(names):
        judged, got = ", ".join(groups) or "none", ", ".join(names) or "none"
        raise ColocateError(f"{options.directory}: expected groups with a verdict, {judged}, got {got}")
    answers = {name: _speedup_of(options, groups[name], name) for name in wanted}
    if options.json:
        print(json.dumps({name: _document(found) for name, found in answers.items()}, indent=2))
    else:
        for name, found in answers.items():
            print(f"{name}: {found}")
            for speedup in found.runs:
                print("\n".join(f"    {line}" for line in figures(speedup)))
    if not options.stored:
        write_summary(directory)
    known = [found.saved for found in answers.values() if found.saved is not None]
    if any(saved[0] <= 0 for saved in known):
        return command.CHECK_FAILED
    return command.SUCCESS if len(known) == len(answers) else command.UNDECIDED


def _document(found: "GroupSpeedup") -> dict[str, Any]:
    return {**found.to_json(), "saved": found.saved, "text": str(found)}


def _speedup_of(options: argparse.Namespace, group_result: "GroupResult", name: str) -> "GroupSpeedup":
    from colocate.advice import Cache, GroupSpeedup, read_speedup, refused, settle
    from colocate.device import opened

    if options.stored:
        return read_speedup(group_result.deciding.directory) or GroupSpeedup(unknown="nobody asked yet")
    why = refused(group_result)
    if why is not None:
        return GroupSpeedup(unknown=why)
    group = _group(options, group_result, name)
    directory = group_result.deciding.directory
    cache = None if options.no_cache else Cache.of_user()
    tell: Callable[[str], None] = lambda text: print(f"{name}: {text}", file=sys.stderr, flush=True)  # noqa: E731
    with opened(_gpu(group_result), directory.virtual_gpu, holder=name, wait_s=options.wait) as device:
        return settle(group, group_result, device, cache=cache, times=options.repeat, tell=tell)


def _gpu(group_result: "GroupResult") -> "FoundGpu":
    """The GPU of the run, as large as it was there."""
    from colocate.device import FoundGpu

    device = group_result.deciding.evidence["device"]
    small = device["total_bytes"] if device.get("balloon") is not None else None
    return FoundGpu("nvidia", device["uuid"], small)


def _group(options: argparse.Namespace, group_result: "GroupResult", name: str) -> "Group":
    """The group as its plan has it, if that is still the group that was run.

    Raises:
        PlanError: the plan is not there, or has changed.
    """
    from colocate.files import read_json
    from colocate.plan import load_plan

    run = group_result.deciding.directory.run
    reported = (read_json(run.record).get("plan") or {}) if run.record.exists() else {}
    path = options.plan or reported.get("path")
    if not path:
        raise PlanError(f"--plan: expected the plan of the run, {command.near(run.record)} names none")
    plan = load_plan(Path(path), reported.get("catalog"))
    group = next((one for one in plan.groups if one.content_hash == group_result.deciding.group["content_hash"]), None)
    if group is None:
        raise PlanError(f"{path}: expected {name} as it was run, found it changed; run the group again")
    return group


def figures(speedup: "Speedup") -> Iterator[str]:
    """Describe what the answer rests on, one line each."""
    yield f"together {speedup.together_s:.1f} s, one after the other {speedup.sequential_s:.1f} s for the same work"
    yield f"foreground {speedup.foreground_solo_s:.1f} s alone, takes {speedup.foreground_slowdown:.2f} times as long"
    steps = f"background's {speedup.background_steps:.0f} steps take {speedup.background_solo_s:.1f} s alone"
    yield f"{steps}, {speedup.background_slowdown:.2f} times as long together" if speedup.background_solo_s else steps
    if speedup.energy_saved is None or speedup.together_j is None or speedup.sequential_j is None:
        yield "energy: not told by the GPU's counter"
        return
    more = "less" if speedup.energy_saved >= 0 else "more"
    text = f"GPU's energy {speedup.together_j:.0f} J together, {speedup.sequential_j:.0f} J one after the other"
    yield f"{text}: {abs(speedup.energy_saved):.0%} {more}"
    if speedup.idle_share is not None:
        yield f"of that together {speedup.idle_share:.0%} are what the GPU draws idle"
    if speedup.foreground_samples and speedup.foreground_solo_j is not None:
        solo_run = speedup.foreground_solo_j / speedup.foreground_samples
        both = speedup.together_j / speedup.foreground_samples
        yield f"{solo_run:.3g} J per sample of the foreground alone; {both:.3g} J together, background included"
