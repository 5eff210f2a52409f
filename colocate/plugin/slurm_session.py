# SPDX-License-Identifier: Apache-2.0
"""xdist's session when its workers wait in a queue: each joins when its job runs, and leaves when its job ends.

xdist itself starts its workers one after the other and waits for each, so that one that waits for a GPU would hold up
all others. Here each is started in a thread of its own; what comes of it arrives in the session's queue of events like
everything else. A group that was lost with its worker is run once more, on another machine.
"""

import contextlib
import sys
import threading
from typing import Any

import execnet
import pytest
from xdist.dsession import DSession
from xdist.workermanage import NodeManager, WorkerController

from colocate.errors import ColocateError
from colocate.files import make_folder, read_json, write_json
from colocate.plan import gpu_model
from colocate.plugin import devices
from colocate.plugin.options import option
from colocate.plugin.session import Session, group_of, run_directory_of, selects, session_of
from colocate.plugin.slurm_requests import ANY, Request
from colocate.plugin.slurm_workers import Elsewhere, WorkerSlot, look
from colocate.plugin.workers import VISIBLE

# A request that the queue refuses so soon is refused for what it asks: asking again would not help.
AT_ONCE_S = 3.0


class Waiting:
    """Stands among xdist's active workers for one that has not come yet."""

    def __init__(self, slot: WorkerSlot, spec: Any) -> None:
        self.slot = slot
        self.spec = spec


class QueuedSession(DSession):  # type: ignore[misc]
    """xdist's session with late workers."""

    def __init__(self, config: pytest.Config) -> None:
        super().__init__(config)
        session = session_of(config)
        assert session.elsewhere is not None, "made for workers elsewhere"
        self._elsewhere: Elsewhere = session.elsewhere
        self._settings: Session = session
        self._folder = run_directory_of(config).path / "workers"
        self._held_back: list[Any] = []
        self._first_seen: dict[str, WorkerController] = {}
        self._refusals: list[str] = []
        small = option(config, "gpu")
        size = gpu_model(small).total_bytes if small else session.plan.limits.gpu_bytes
        self._gpu_wanted = {"gpu_bytes": size, "small": small is not None}

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Ask for the workers; nobody is waited for here."""
        make_folder(self._folder)
        self._session = session
        self.nodemanager = NodeManager(self.config)
        specs = list(self.nodemanager.specs)
        self.config.hook.pytest_xdist_setupnodes(config=self.config, specs=specs)
        requests = self._elsewhere.requests((group.gpu for group in self._settings.plan.groups), len(specs)) or [ANY]
        fewer = selects(self.config) or bool(self._settings.decisions)
        self._held_back = specs
        self._ask_for(requests[:1] if fewer else requests)

    def _ask_for(self, requests: list[Request]) -> None:
        """Ask for these workers; for those for which there is no room beside the others, once one of these has left."""
        specs, self._held_back = self._held_back[: len(requests)], self._held_back[len(requests) :]
        self._elsewhere.later = requests[len(specs) :]
        for spec, request in zip(specs, requests, strict=False):
            self._ask(spec, request)

    def _ask(self, spec: Any, request: Request, avoid: frozenset[str] = frozenset()) -> None:
        slot, spec.python = self._elsewhere.ask(spec.id, self._folder, request, avoid)
        waiting = Waiting(slot, spec)
        self._active_nodes.add(waiting)
        slot.thread = threading.Thread(target=self._bring, args=(waiting,), name=f"colocate-{spec.id}", daemon=True)
        slot.thread.start()

    def _bring(self, waiting: Waiting) -> None:
        """Start a worker in a thread that lasts as long as the job: its end would end srun."""
        gateway = None
        try:
            gateway = self.nodemanager.group.makegateway(waiting.spec)  # blocks while the job waits
            seen = gateway.remote_exec(look, paths=sys.path, gpu=self._elsewhere.gpu, **self._gpu_wanted).receive()
        except Exception as error:  # srun was refused, cancelled or lost: whatever it is, no worker has come
            self.queue.put(("refused", {"waiting": waiting, "gateway": gateway, "error": error}))
        else:
            self.queue.put(("joined", {"waiting": waiting, "gateway": gateway, "seen": seen}))
        if gateway is not None:
            with contextlib.suppress(Exception):
                gateway._io.wait()

    # What happens to the workers.

    def worker_joined(self, waiting: Waiting, gateway: execnet.Gateway, seen: dict[str, Any]) -> None:
        """A job runs, and has looked at its GPU."""
        slot = waiting.slot
        if slot.ended:  # given up meanwhile
            gateway.exit()
            return
        if seen["refusal"] is not None:
            slot.host = seen["host"]
            error = ColocateError(f"{seen['host']}: {seen['refusal']}")
            self.worker_refused(waiting, gateway, error, frozenset({seen["host"]}))
            return
        slot.host, slot.job, slot.step, slot.gpu = seen["host"], seen["job"], seen["step"], seen["gpu"]
        if slot.gpu is not None:
            gateway.spec.env[VISIBLE] = slot.gpu["uuid"]  # by which `colocate.plugin.workers` knows its GPU
        self._note(slot)
        self.config.hook.pytest_xdist_newgateway(gateway=gateway)
        node = WorkerController(self.nodemanager, gateway, self.config, self.queue.put)
        gateway.node = node  # type: ignore[attr-defined]  # xdist does the same: it keeps the node alive
        try:
            node.setup()
        except (OSError, EOFError) as error:  # it was lost in the meantime
            self.worker_refused(waiting, gateway, error, frozenset({slot.host or ""}))
            return
        self._active_nodes.discard(waiting)
        self._active_nodes.add(node)

    def _note(self, slot: WorkerSlot) -> None:
        """Let the session, its record and whoever looks on know which GPU the worker has."""
        from colocate.device import FoundGpu

        if slot.gpu is not None:
            gpu = FoundGpu(**slot.gpu)
            if gpu not in self._settings.gpus:
                self._settings.gpus = (*self._settings.gpus, gpu)
        named = "" if slot.gpu is None else f" with {slot.gpu['uuid']}"
        self.report_line(f"{slot.worker}: job {slot.job} runs on {slot.host}{named}")
        run = run_directory_of(self.config)
        with contextlib.suppress(ColocateError, OSError):
            document = read_json(run.record)
            reported = {"worker": slot.worker, "host": slot.host, "job": slot.job, "gpu": slot.gpu}
            document["gpu"]["gpus"] = [devices.sendable(gpu) for gpu in self._settings.gpus]
            write_json(run.record, {**document, "workers": [*document.get("workers", []), reported]})

    def worker_refused(
        self, waiting: Waiting, gateway: Any, error: Exception, avoid: frozenset[str] = frozenset()
    ) -> None:
        """No worker came of a job: ask once more, unless that is pointless."""
        slot = waiting.slot
        given_up, slot.ended = slot.ended, True
        if gateway is not None:
            gateway.exit()
        if waiting not in self._active_nodes or given_up or self._elsewhere.ending:
            self._active_nodes.discard(waiting)
            return
        why = slot.last_words() or f"{type(error).__name__}: {error}"
        why = str(error) if avoid else why
        if why not in self._refusals:
            self.report_line(f"{slot.worker}: expected a worker of its job, found none: {why}")
        self._refusals.append(why)
        at_once = not avoid and slot.age_s < AT_ONCE_S
        pointless = at_once and not slot.avoid
        if not pointless and len(self._refusals) <= int(self._max_worker_restart or 0):
            # What is refused at once may be so for want of the machine that is to be avoided.
            self._ask(self._renamed(waiting.spec), slot.request, frozenset() if at_once else slot.avoid | avoid)
        else:
            self._ask_in_place_of(waiting.spec)
        self._active_nodes.discard(waiting)
        if not self._active_nodes:
            self.shouldstop = f"no worker is left and none will come: {why}; see --slurm"
        elif self.sched is not None:
            self.sched.feed()

    def worker_workerfinished(self, node: WorkerController) -> None:
        """A worker has ended; one whose job was ended by somebody else is replaced like one that died."""
        if node.workeroutput["exitstatus"] == pytest.ExitCode.INTERRUPTED and not self._elsewhere.ending:
            self.worker_errordown(node, "its job was ended")
            return
        super().worker_workerfinished(node)
        self._ended(node)
        self._ask_in_place_of(node.gateway.spec)

    def _ask_in_place_of(self, spec: Any) -> None:
        """Somebody has left: there is room for a worker of another kind."""
        if self._elsewhere.later and not self.shuttingdown and not self.shouldstop:
            self._ask(self._renamed(spec), self._elsewhere.later.pop(0))

    def _renamed(self, spec: Any) -> Any:
        """Return the request of a worker, for another one."""
        spec.id = None
        self.nodemanager.group.allocate_id(spec)
        spec.env.pop(VISIBLE, None)
        return spec

    def worker_errordown(self, node: WorkerController, error: object | None) -> None:
        """A worker is gone without having ended its group."""
        self._ended(node)
        node.gateway.exit()  # one that only failed would keep its GPU, for which its successor may wait
        super().worker_errordown(node, error)

    def _ended(self, node: WorkerController) -> None:
        slot = self._elsewhere.slot_of(node)
        if slot is not None:
            slot.ended = True

    def _clone_node(self, node: WorkerController) -> WorkerController:
        """Ask for another worker in place of one that is lost, on another machine."""
        slot = self._elsewhere.slot_of(node)
        assert slot is not None, "it was asked for"
        lost = frozenset() if slot.host is None else frozenset({slot.host})
        self._ask(self._renamed(node.gateway.spec), slot.request, lost)
        return node

    def run_again(self, nodeid: str, node: WorkerController) -> bool:
        """Say whether a group that was lost with its worker is run once more; asked by the scheduler."""
        slot = self._elsewhere.slot_of(node)
        completeness = self.config.pluginmanager.get_plugin("colocate-ledger")
        if slot is None or self._elsewhere.ending or nodeid in self._elsewhere.again or nodeid in completeness.judged:
            return False
        self._elsewhere.again[nodeid] = slot.host or ""
        completeness.lost(nodeid, slot.loss)
        self.config.pluginmanager.get_plugin("colocate-progress").rest(nodeid)
        group = group_of(self.config, nodeid)
        self.report_line(f"{nodeid if group is None else group.id}: {slot.loss}; the group is run again elsewhere")
        return True

    def worker_testreport(self, node: WorkerController, rep: pytest.TestReport) -> None:
        """A report of a group; if the group is run again, all its reports count as those of one worker.

        JUnit's file would otherwise have the case twice, once without an end.
        """
        rep.node = self._first_seen.setdefault(rep.nodeid, node)  # type: ignore[attr-defined]
        self.config.hook.pytest_runtest_logreport(report=rep)
        self._handlefailures(rep)

    @pytest.hookimpl(tryfirst=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """The same for a group that is lost and not run again."""
        slot = self._elsewhere.slot_of(report.node)
        report.longrepr = report.longreprtext if slot is None else slot.loss
        report.node = self._first_seen.get(crashitem, report.node)  # type: ignore[attr-defined]

    def worker_collectionfinish(self, node: WorkerController, ids: list[str]) -> None:
        """A worker knows the groups: ask for as many further workers as they need, and no more."""
        if self._held_back and not self.shuttingdown:
            self._ask_for_the_others(node, ids)
        super().worker_collectionfinish(node, ids)

    def _ask_for_the_others(self, node: WorkerController, ids: list[str]) -> None:
        reused = {name for name, decision in self._settings.decisions.items() if decision.reused is not None}
        groups = [group for nodeid in ids if (group := group_of(self.config, nodeid)) is not None]
        wishes = [group.gpu for group in groups if group.id not in reused]
        requests = self._elsewhere.requests(wishes, 1 + len(self._held_back))
        first = self._elsewhere.slot_of(node)
        assert first is not None, "it was asked for"
        served = next((one for one in (first.request, ANY) if one in requests), None)
        if served is not None:
            requests.remove(served)
        self._ask_for(requests)
        self._held_back = []

    def loop_once(self) -> None:
        """Handle one event; then release workers for which there is no group any more."""
        super().loop_once()
        if self.sched is not None and self.sched.all_given:
            self._give_up_waiting()
        elif self.sched is not None and self._elsewhere.more_come:
            self._let_go()

    def _let_go(self) -> None:
        """An idle worker keeps a GPU that is of no use for what is left, and perhaps a place that others wait for."""
        assert self.sched is not None, "somebody is idle"
        for node in self.sched.idle:
            left = filter(None, (group_of(self.config, nodeid) for nodeid in self.sched.waiting))
            slot = self._elsewhere.slot_of(node)
            if slot is not None and not any(slot.has(group.gpu) for group in left):
                node.shutdown()

    def triggershutdown(self) -> None:
        """Nothing more is to be run."""
        self._held_back = []
        self._give_up_waiting()
        super().triggershutdown()

    def _give_up_waiting(self) -> None:
        self._elsewhere.later = []
        for waiting in [node for node in self._active_nodes if isinstance(node, Waiting)]:
            self._elsewhere.give_up(waiting.slot)
            self._active_nodes.discard(waiting)

    def tell_to_end(self) -> None:
        """The run is interrupted: workers end their groups, and nothing waits any more."""
        self._elsewhere.interrupt()
        self._give_up_waiting()

    @pytest.hookimpl
    def pytest_sessionfinish(self) -> None:
        """End the workers, and see that nothing of them is left."""
        super().pytest_sessionfinish()
        for left in self._elsewhere.close():
            self.report_line(f"slurm: expected its end, found it still there: {left}")


class Replacing:
    """Puts the session of this module in the place of xdist's own, which xdist makes when it is configured."""

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Called after xdist's own, because this was registered later."""
        manager = config.pluginmanager
        for name in ("dsession", "terminaldistreporter"):
            if manager.has_plugin(name):
                manager.unregister(name=name)
        manager.register(QueuedSession(config), "dsession")
