# SPDX-License-Identifier: Apache-2.0
"""``--try-fixes``: at the end of a session, proposals for groups that do not fit are tried until one holds."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from colocate.advice import KIND, Remedied, Remedies, is_of_memory
from colocate.device import FoundGpu, Quarantine, as_asked
from colocate.harness import AttemptRunner
from colocate.plan import Group
from colocate.plugin.invocation import leads
from colocate.plugin.options import option
from colocate.plugin.session import Session, say, session_of, warn
from colocate.results import Attempt, GroupDirectory, GroupResult, RunDirectory, peak_text


class Remedying:
    """The hook that tries before the page is written and after proposals were made; in the controller only."""

    def __init__(self, config: pytest.Config, session: Session) -> None:
        self.config = config
        self.session = session

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Called before pytest-html writes; nothing is tried in a session that was interrupted."""
        if exitstatus == pytest.ExitCode.INTERRUPTED:
            return
        try:
            with self._interruptible():
                self._remedy()
        except KeyboardInterrupt:
            warn(self.config, "remedies: ended early, as asked; --resume goes on with them")
        except Exception as error:  # whatever it is: the verdicts are on disk and do not need this
            warn(self.config, f"could not try fixes: {type(error).__name__}: {error}")

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """A signal ends what is started inside, although the session is ending already."""
        interruption = self.config.pluginmanager.get_plugin("colocate-ledger").interruption  # type: ignore[union-attr]
        interruption.ending = False
        try:
            yield
        finally:
            interruption.ending = True

    def _remedy(self) -> None:
        wanted = self._wanted()
        run, plan = self.session.run_directory, self.session.plan
        if wanted and option(self.config, "executor"):
            warn(self.config, "remedies: expected a run on this machine, found one elsewhere; nothing is tried")
        gpu = None if run is None else self._gpu(run)
        if not wanted or run is None or gpu is None:
            return
        say(self.config, f"trying remedies for {', '.join(group.id for group, _ in wanted)}")
        side = run.side_run(KIND)
        trials = AttemptRunner(side, plan.name, gpu, option(self.config, "wait"))

        def attempt(group: Group) -> Attempt:
            return replace(trials, gpu=self._gpu(run, group) or gpu).attempt(group)

        remedies = Remedies(run, plan.load_catalog(), self.session.gpus, attempt, plan.entry)
        try:
            for found in remedies.find(wanted):
                for line in lines(found):
                    say(self.config, line)
        finally:
            side.release()

    def _wanted(self) -> list[tuple[Group, GroupDirectory]]:
        return [
            (group, directory) for group, directory, reported in self.session.recorded() if self._is_wanted(reported)
        ]

    def _is_wanted(self, reported: GroupResult) -> bool:
        """Return whether it does not fit for lack of memory, or, if asked for, whether that is undecided."""
        undecided = option(self.config, "try_fixes") == "undecided" and "undecided" in reported.codes
        return undecided or is_of_memory(reported.outcome, reported.codes)

    def _gpu(self, run: RunDirectory, group: Group | None = None) -> FoundGpu | None:
        """The first GPU of the session that is in order, and what the group asks for."""
        quarantine = Quarantine(run.quarantine)
        sound = (gpu for gpu in self.session.gpus if quarantine.why(gpu.uuid) is None)
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


def register(config: pytest.Config) -> None:
    """Take part in this session."""
    if option(config, "try_fixes") and leads(config):
        config.pluginmanager.register(Remedying(config, session_of(config)), "colocate-remedies")
