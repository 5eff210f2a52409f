"""``colocate worth``: whether sharing a card was worth it, together against one after the other."""

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
    from colocate.advice.speedup import GroupWorth, Worth
    from colocate.device.acquire import Card
    from colocate.plan.plan import Group
    from colocate.results.attempts import Settled


def add(commands: command.Commands) -> None:
    """Declare the arguments."""
    parser = command.new(
        commands,
        "worth",
        "Compare the feasible groups of a run with their trainings one after the other; runs those alone on the card.",
        "colocate worth results/run_20261124_053000 -k group07",
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
    from colocate.report.summary_csv import write_summary
    from colocate.results.attempts import settled_groups
    from colocate.results.layout import RunDirectory

    directory = RunDirectory(options.directory)
    if not directory.record.exists():
        raise ColocateError(f"{options.directory}: expected a run directory, found no run.json in it")
    groups = settled_groups(directory)
    names = options.group or list(groups)
    wanted = [meant for name in names if (meant := group_named(name, tuple(groups)))]
    if not wanted or len(wanted) < len(names):
        judged, got = ", ".join(groups) or "none", ", ".join(names) or "none"
        raise ColocateError(f"{options.directory}: expected groups with a verdict, {judged}, got {got}")
    answers = {name: _worth_of(options, groups[name], name) for name in wanted}
    if options.json:
        print(json.dumps({name: _document(found) for name, found in answers.items()}, indent=2))
    else:
        for name, found in answers.items():
            print(f"{name}: {found}")
            for worth in found.runs:
                print("\n".join(f"    {line}" for line in figures(worth)))
    if not options.stored:
        write_summary(directory)
    known = [found.saved for found in answers.values() if found.saved is not None]
    if any(saved[0] <= 0 for saved in known):
        return command.FINDING
    return command.WELL if len(known) == len(answers) else command.UNDECIDED


def _document(found: "GroupWorth") -> dict[str, Any]:
    return {**found.to_json(), "saved": found.saved, "text": str(found)}


def _worth_of(options: argparse.Namespace, settled: "Settled", name: str) -> "GroupWorth":
    from colocate.advice.solo_runs import Cache, read_worth, refused, settle
    from colocate.advice.speedup import GroupWorth
    from colocate.device.acquire import opened

    if options.stored:
        return read_worth(settled.deciding.directory) or GroupWorth(unknown="nobody asked yet")
    why = refused(settled)
    if why is not None:
        return GroupWorth(unknown=why)
    group = _group(options, settled, name)
    directory = settled.deciding.directory
    cache = None if options.no_cache else Cache.of_user()
    tell: Callable[[str], None] = lambda text: print(f"{name}: {text}", file=sys.stderr, flush=True)  # noqa: E731
    with opened(_card(settled), directory.virtual_card, holder=name, wait_s=options.wait) as device:
        return settle(group, settled, device, cache=cache, times=options.repeat, tell=tell)


def _card(settled: "Settled") -> "Card":
    """The card of the run, as large as it was there."""
    from colocate.device.acquire import Card

    device = settled.deciding.evidence["device"]
    small = device["total_bytes"] if device.get("ballast") is not None else None
    return Card("nvidia", device["uuid"], small)


def _group(options: argparse.Namespace, settled: "Settled", name: str) -> "Group":
    """The group as its plan has it, if that is still the group that was run.

    Raises:
        PlanError: the plan is not there, or has changed.
    """
    from colocate.files import read_json
    from colocate.plan.plan import load_plan

    run = settled.deciding.directory.run
    told = (read_json(run.record).get("plan") or {}) if run.record.exists() else {}
    path = options.plan or told.get("path")
    if not path:
        raise PlanError(f"--plan: expected the plan of the run, {command.near(run.record)} names none")
    plan = load_plan(Path(path), told.get("catalog"))
    group = next((one for one in plan.groups if one.content_hash == settled.deciding.group["content_hash"]), None)
    if group is None:
        raise PlanError(f"{path}: expected {name} as it was run, found it changed; run the group again")
    return group


def figures(worth: "Worth") -> Iterator[str]:
    """What the answer rests on, a line each."""
    yield f"together {worth.together_s:.1f} s, one after the other {worth.sequential_s:.1f} s for the same work"
    yield f"foreground {worth.foreground_alone_s:.1f} s alone, takes {worth.foreground_slowdown:.2f} times as long"
    steps = f"background's {worth.background_steps:.0f} steps take {worth.background_alone_s:.1f} s alone"
    yield f"{steps}, {worth.background_slowdown:.2f} times as long together" if worth.background_alone_s else steps
    if worth.energy_saved is None or worth.together_j is None or worth.sequential_j is None:
        yield "energy: not told by the card's counter"
        return
    more = "less" if worth.energy_saved >= 0 else "more"
    text = f"card's energy {worth.together_j:.0f} J together, {worth.sequential_j:.0f} J one after the other"
    yield f"{text}: {abs(worth.energy_saved):.0%} {more}"
    if worth.idle_share is not None:
        yield f"of that together {worth.idle_share:.0%} are what the card draws idle"
    if worth.foreground_samples and worth.foreground_alone_j is not None:
        alone = worth.foreground_alone_j / worth.foreground_samples
        both = worth.together_j / worth.foreground_samples
        yield f"{alone:.3g} J per sample of the foreground alone; {both:.3g} J together, the background's work included"
