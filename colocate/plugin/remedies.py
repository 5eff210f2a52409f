# SPDX-License-Identifier: Apache-2.0
"""``--try-fixes``: at the end of a session, proposals for groups that do not fit are tried until one holds."""

import textwrap
from dataclasses import replace

import pytest

from colocate.advice import KIND, Remedied, Remedies, is_of_memory
from colocate.device import FoundGpu, Quarantine, as_asked
from colocate.harness import AttemptRunner
from colocate.plan import Group
from colocate.plugin.options import option
from colocate.plugin.session import Session, run_directory_of, say, session_of, warn
from colocate.plugin.signals import interruption_of
from colocate.results import Attempt, GroupResult, RunDirectory, peak_text


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Called after proposals were made and before pytest-html writes; not of use in a session that was interrupted."""
    config = session.config
    if exitstatus == pytest.ExitCode.INTERRUPTED or not option(config, "try_fixes"):
        return
    try:
        with interruption_of(config).allowed():
            _try_fixes(config, session_of(config))
    except KeyboardInterrupt:
        warn(config, "remedies: ended early, as asked; --resume goes on with them")
    except Exception as error:  # whatever it is: the verdicts are on disk and do not need this
        warn(config, f"could not try fixes: {type(error).__name__}: {error}")


def _try_fixes(config: pytest.Config, session: Session) -> None:
    wanted = [(group, directory) for group, directory, found in session.recorded() if _is_wanted(config, found)]
    run, plan = run_directory_of(config), session.plan
    if wanted and option(config, "executor"):
        warn(config, "remedies: expected a run on this machine, found one elsewhere; nothing is tried")
    gpu = _gpu(session, run)
    if not wanted or gpu is None:
        return
    say(config, f"trying remedies for {', '.join(group.id for group, _ in wanted)}")
    side = run.side_run(KIND)
    trials = AttemptRunner(side, plan.name, gpu, option(config, "wait"))

    def attempt(group: Group) -> Attempt:
        return replace(trials, gpu=_gpu(session, run, group) or gpu).attempt(group)

    try:
        for found in Remedies(run, plan.load_catalog(), session.gpus, attempt, plan.entry).find(wanted):
            for line in lines(found):
                say(config, line)
    finally:
        side.release()


def _is_wanted(config: pytest.Config, reported: GroupResult) -> bool:
    """Return whether it does not fit for lack of memory, or, if asked for, whether that is undecided."""
    undecided = option(config, "try_fixes") == "undecided" and "undecided" in reported.codes
    return undecided or is_of_memory(reported.outcome, reported.codes)


def _gpu(session: Session, run: RunDirectory, group: Group | None = None) -> FoundGpu | None:
    """The first GPU of the session that is in order, and what the group asks for."""
    quarantine = Quarantine(run.quarantine)
    sound = (gpu for gpu in session.gpus if quarantine.why(gpu.uuid) is None)
    asked = None if group is None else group.gpu
    return next((gpu for one in sound if (gpu := as_asked(one, asked)) is not None), None)


def lines(found: Remedied) -> list[str]:
    """Describe the result in lines of at most 80 columns."""
    remedy = found.remedy
    if remedy is None:
        tried = len(found.trials)
        text = f"{found.group.id}: no remedy holds ({tried} tried)" if tried else f"{found.group.id}: nothing to try"
        return [text]
    verdict, step = remedy.verdict, remedy.candidate.step
    before, after = (peak_text(one) for one in (found.before, verdict))
    reported = (
        f"remedy for {found.group.id}: {verdict.outcome} ({verdict.basis}) with {remedy.candidate.proposal.training}: "
    )
    reported += f"{step.settings}; peak {after}, before {before}" + (" [reused]" if remedy.reused else "")
    return textwrap.wrap(reported, 79, subsequent_indent="    ", break_long_words=False)
