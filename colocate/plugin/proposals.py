# SPDX-License-Identifier: Apache-2.0
"""Predict at the end of a session what could be tried for groups that do not fit, within a time budget."""

import textwrap
import time

import pytest

from colocate.advice import Answer, ProposalForecast, advise, is_unfit
from colocate.harness import Cache
from colocate.plan import Group
from colocate.plugin.invocation import leads
from colocate.plugin.options import option
from colocate.plugin.session import Session, say, session_of, warn
from colocate.plugin.signals import skippable
from colocate.units import span_text

REMEDY_BUDGET_S = 600.0


class Proposals:
    """The hook that predicts before the page is written; in the controller, or in the only process."""

    def __init__(self, config: pytest.Config, session: Session) -> None:
        self.config = config
        self.session = session
        self.began_t = time.monotonic()

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Called before pytest-html writes; a session that was interrupted is to end, so nothing is predicted in it."""
        most_s = 0.0 if exitstatus == pytest.ExitCode.INTERRUPTED else float(option(self.config, "predict"))
        budget_s = min(most_s, time.monotonic() - self.began_t)  # advice never takes longer than the groups did
        if budget_s and option(
            self.config, "try_fixes"
        ):  # a remedy runs for as long as its group: a guess would cost more
            budget_s = max(budget_s, REMEDY_BUDGET_S)
        try:
            self._advise(budget_s)
        except Exception as error:  # whatever it is: the verdicts are on disk and do not need this
            warn(self.config, f"could not make proposals: {type(error).__name__}: {error}")

    def _advise(self, budget_s: float) -> None:
        unfit = [one for one in self.session.recorded() if is_unfit(one[2])]
        unfit.sort(key=lambda one: one[2].outcome != "INFEASIBLE")  # of an undecided group a GPU decides anyway
        wanted = [(group, directory) for group, directory, _ in unfit]
        run = self.session.run_directory
        if not wanted or run is None:
            return
        if budget_s:
            say(self.config, f"predicting what could be tried, for at most {budget_s:.0f} s; Ctrl-C goes on without it")
        catalog = self.session.plan.load_catalog()
        with skippable():
            for group, found in advise(run, wanted, catalog, budget_s=budget_s, cache=Cache.of_user()):
                for line in lines(group, found):
                    say(self.config, line)


def lines(group: Group, found: list[ProposalForecast]) -> list[str]:
    """The cheapest proposal that is predicted to fit, of at most 80 columns a line."""
    fitting = next((one for one in found if one.answer is Answer.FITS), None)
    if fitting is None or fitting.forecast is None or fitting.forecast.peak is None:
        return []
    peak = fitting.forecast.peak
    range_ = f"{span_text(peak.low_bytes, peak.high_bytes, beside=group.limits.peak_bytes)} MiB"
    text = f"{group.id} is predicted to fit ({range_}) with {fitting.proposal.text(fitting.step)}"
    return textwrap.wrap(text, 79, subsequent_indent="    ", break_long_words=False)


def register(config: pytest.Config) -> None:
    """Take part in this session."""
    if leads(config):
        config.pluginmanager.register(Proposals(config, session_of(config)), "colocate-proposals")
