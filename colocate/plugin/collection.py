"""What collecting the cases adds: words for ``-k``, and in a worker a last item that does nothing.

A worker of xdist starts one test only when it knows the next. The sentinel is always "the next", so that the
controller may decide which group comes next when a GPU is free, not before.
"""

from collections.abc import Iterator

import pytest

from colocate.plugin import selection
from colocate.plugin.session import group_of, is_worker, lasting

SENTINEL = "__next__"


class Sentinel(pytest.Item):
    """The item after the last group: it is run by nobody and reported to nobody."""

    def runtest(self) -> None:
        """Nothing to do."""


class Collection:
    """Hooks around collecting, in every process."""

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Iterator[None]:
        """The cases stay until the end."""
        with lasting():
            return (yield)

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Let ``-k`` find a group by the models, repositories and tier in it."""
        group = group_of(item.config, item.nodeid)
        if group is not None:
            item.extra_keyword_matches.update(selection.keywords(group))


class WorkerCollection:
    """Hooks around collecting in a worker."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Append the sentinel after xdist has told the controller what was collected: it never sees the sentinel."""
        if session.items:
            session.items.append(Sentinel.from_parent(session.items[-1].parent or session, name=SENTINEL))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Pass over the sentinel."""
        return True if isinstance(item, Sentinel) else None


def register(config: pytest.Config) -> None:
    """Take part in this session."""
    config.pluginmanager.register(Collection(), "colocate-collection")
    if is_worker(config):
        config.pluginmanager.register(WorkerCollection(), "colocate-worker-collection")
