"""At the end of a session: what could be tried for the groups that do not fit, predicted as long as there is time."""

import signal
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytest

from colocate.advice.outlook import Outlook, advise
from colocate.catalog import default_catalog, load_catalog
from colocate.foresight import Answer
from colocate.plan import Group
from colocate.plugin.configuration import Session, is_worker, only_looks, session_of
from colocate.rehearsal import Cache
from colocate.report.advice import is_unfit
from colocate.run_directory import GroupDirectory
from colocate.units import to_mib

REMEDY_BUDGET_S = 600.0


class Proposals:
    """The hook that predicts before the page is written; in the controller, or in the only process."""

    def __init__(self, config: pytest.Config, session: Session) -> None:
        self.config = config
        self.session = session

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Called before pytest-html writes; a session that was interrupted is to end, so nothing is predicted in it."""
        budget_s = 0.0 if exitstatus == pytest.ExitCode.INTERRUPTED else float(self.config.option.predict)
        if budget_s and self.config.option.remedy:  # a remedy runs for as long as its group: a guess would cost more
            budget_s = max(budget_s, REMEDY_BUDGET_S)
        try:
            self._advise(budget_s)
        except Exception as error:  # whatever it is: the verdicts are on disk and do not need this
            self._say(f"proposals: expected to be made, got {type(error).__name__}: {error}", yellow=True)

    def _advise(self, budget_s: float) -> None:
        wanted = [(group, GroupDirectory(Path(directory))) for group, directory in self._unfit()]
        run = self.session.run_directory
        if not wanted or run is None:
            return
        plan = self.session.plan
        if budget_s:
            self._say(f"predicting what could be tried, for at most {budget_s:g} s; Ctrl-C goes on without it")
        catalog = load_catalog(plan.catalog or default_catalog(plan.path))
        with skippable():
            for group, found in advise(run, wanted, catalog, budget_s=budget_s, cache=Cache.of_user()):
                for line in lines(group, found):
                    self._say(line)

    def _unfit(self) -> list[tuple[Group, str]]:
        records = self.session.records
        found = [(group, records[group.id]) for group in self.session.plan.groups if group.id in records]
        return [(group, record["directory"]) for group, record in found if record["directory"] and is_unfit(record)]

    def _say(self, text: str, **markup: bool) -> None:
        terminal: Any = self.config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None and self.config.option.verbose >= 0:
            terminal.write_line(text, **markup)


@contextmanager
def skippable() -> Iterator[None]:
    """SIGINT and SIGTERM end what is predicted and not the session, which has its page still to write.

    At this time the session's own handler waits for a second signal, which would end it at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def skip(number: int, frame: FrameType | None) -> NoReturn:
        own = before[signal.Signals(number)]
        if number == signal.SIGTERM and callable(own):
            own(number, frame)  # the exit code tells of it
        raise KeyboardInterrupt

    for number in before:
        signal.signal(number, skip)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def lines(group: Group, found: list[Outlook]) -> list[str]:
    """The cheapest proposal that is predicted to fit, of at most 80 columns a line."""
    fitting = next((one for one in found if one.answer is Answer.FITS), None)
    if fitting is None or fitting.forecast is None or fitting.forecast.peak is None:
        return []
    peak = fitting.forecast.peak
    range_ = f"{to_mib(peak.low_bytes):.0f}-{to_mib(peak.high_bytes):.0f} MiB"
    text = f"{group.id} is predicted to fit ({range_}) with {fitting.proposal.text(fitting.step)}"
    return textwrap.wrap(text, 79, subsequent_indent="    ", break_long_words=False)


def register(config: pytest.Config) -> None:
    """Take part in this session."""
    if not is_worker(config) and not only_looks(config):
        config.pluginmanager.register(Proposals(config, session_of(config)), "colocate-proposals")
