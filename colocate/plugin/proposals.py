# SPDX-License-Identifier: Apache-2.0
"""Predict what could be tried for groups that do not fit: beside the last groups, and at the end within a budget."""

import textwrap
import threading
import time
from contextlib import suppress
from math import inf

import pytest

from colocate.advice import Abandoned, Answer, Behind, ProposalForecast, advise, is_unfit
from colocate.errors import ColocateError
from colocate.harness import Cache
from colocate.plan import Group
from colocate.plugin.options import option
from colocate.plugin.session import Session, run_directory_of, say, session_of, warn
from colocate.plugin.signals import interruption_of
from colocate.results import GroupDirectory, RunDirectory
from colocate.units import span_text

REMEDY_BUDGET_S = 600.0
LOOK_S = 0.5


class Proposals:
    """The hook that predicts before the page is written; in the controller, or in the only process."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.session = session_of(config)
        self.began_t = time.monotonic()
        self._ahead: Ahead | None = None

    def pytest_runtest_logfinish(self) -> None:
        """Called after each case: what did not fit is predicted on processors that the other groups leave idle."""
        if self._ahead is None and _may_predict_ahead(self.config, self.session) and unfit(self.session):
            self._ahead = Ahead(self.session, run_directory_of(self.config), first=_first(self.config))
            self._ahead.start()

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Called before pytest-html writes; a session that was interrupted is to end, so nothing is predicted in it."""
        most_s = 0.0 if exitstatus == pytest.ExitCode.INTERRUPTED else float(option(self.config, "predict"))
        budget_s = min(most_s, (time.monotonic() - self.began_t) / 4)  # whoever asked for verdicts waits for them
        if budget_s and option(
            self.config, "try_fixes"
        ):  # a remedy runs for as long as its group: a guess would cost more
            budget_s = max(budget_s, REMEDY_BUDGET_S)
        until_t = time.monotonic() + budget_s
        if self._ahead is not None:
            self._ahead.end(wait_s=budget_s)
        try:
            self._advise(max(0.0, until_t - time.monotonic()))
        except Exception as error:  # whatever it is: the verdicts are on disk and do not need this
            warn(self.config, f"could not make proposals: {type(error).__name__}: {error}")

    def _advise(self, budget_s: float) -> None:
        ahead = self._ahead.found if self._ahead is not None else {}
        for group, found in ahead.values():
            self._tell(group, found)
        wanted = [one for one in unfit(self.session) if one[0].id not in ahead]
        if not wanted:
            return
        if budget_s:
            say(self.config, f"predicting what could be tried, for at most {budget_s:.0f} s; Ctrl-C goes on without it")
        run, catalog, first = run_directory_of(self.config), self.session.plan.load_catalog(), _first(self.config)
        with interruption_of(self.config).allowed():
            for group, found in advise(run, wanted, catalog, budget_s=budget_s, cache=Cache.of_user(), first=first):
                self._tell(group, found)

    def _tell(self, group: Group, found: list[ProposalForecast]) -> None:
        for line in lines(group, found):
            say(self.config, line)


class Ahead(threading.Thread):
    """Predicts proposals while groups run, with the least priority; what is not ``found`` is left to the end."""

    def __init__(self, session: Session, run: RunDirectory, *, first: bool) -> None:
        super().__init__(name="colocate-proposals", daemon=True)
        self._session, self._run, self._first = session, run, first
        self._behind = Behind()
        self.found: dict[str, tuple[Group, list[ProposalForecast]]] = {}

    def run(self) -> None:
        """Predict for every group that does not fit, the later ones as they come."""
        done = set[str]()
        with suppress(Abandoned, ColocateError, OSError):  # the end of the session tries again, and tells
            catalog = self._session.plan.load_catalog()
            while not self._behind.over:
                wanted = [one for one in unfit(self._session) if one[0].id not in done]
                done |= {group.id for group, _ in wanted}
                for group, found in advise(
                    self._run,
                    wanted,
                    catalog,
                    budget_s=inf,
                    cache=Cache.of_user(),
                    behind=self._behind,
                    first=self._first,
                ):
                    if not self._behind.over:
                        self.found[group.id] = (group, found)
                time.sleep(LOOK_S)

    def end(self, wait_s: float) -> None:
        """Begin nothing new, give what is under way so many seconds, then end it."""
        self._behind.over = True
        self.join(wait_s)
        self._behind.abandoned = True
        self.join()


def _first(config: pytest.Config) -> bool:
    """Predict no further than to a proposal that fits; but fixes are tried one after the other until one holds."""
    return not option(config, "try_fixes")


def _may_predict_ahead(config: pytest.Config, session: Session) -> bool:
    """Beside groups on virtual GPUs in workers: measured trainings must not be slowed down."""
    has_workers = bool(getattr(config.option, "tx", None))
    return has_workers and bool(option(config, "predict")) and all(gpu.kind == "virtual" for gpu in session.gpus)


def unfit(session: Session) -> list[tuple[Group, GroupDirectory]]:
    """The groups so far that do not fit, first those that are known not to: of the others a GPU decides anyway."""
    found = [one for one in session.recorded() if is_unfit(one[2])]
    found.sort(key=lambda one: one[2].outcome != "INFEASIBLE")
    return [(group, directory) for group, directory, _ in found]


def lines(group: Group, found: list[ProposalForecast]) -> list[str]:
    """The cheapest proposal that is predicted to fit, of at most 80 columns a line."""
    fitting = next((one for one in found if one.answer is Answer.FITS), None)
    if fitting is None or fitting.forecast is None or fitting.forecast.peak is None:
        return []
    peak = fitting.forecast.peak
    range_ = f"{span_text(peak.low_bytes, peak.high_bytes, beside=group.limits.peak_bytes)} MiB"
    text = f"{group.id} is predicted to fit ({range_}) with {fitting.proposal.text(fitting.step)}"
    return textwrap.wrap(text, 79, subsequent_indent="    ", break_long_words=False)


def pytest_configure(config: pytest.Config) -> None:
    """Take part in this session."""
    config.pluginmanager.register(Proposals(config))
