"""A Slurm cluster on this machine: one slurmctld and some slurmd, each with GPUs that are links to /dev/null.

The fake NVML library gives every node GPUs of its own. Everything lies in one folder, all traffic stays on the
loopback interface, and everything is ended with it.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from fake_nvml import FakeNvml
from waiting import wait_until

from colocate.process.procfs import variable_of

PROGRAMS = ("slurmctld", "slurmd", "munged", "srun", "sbatch", "salloc", "squeue", "scancel", "sinfo")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
USER = pwd.getpwuid(os.getuid()).pw_name
SIZE = "CPUs=4 RealMemory=4000"


def missing() -> list[str]:
    """The programs of Slurm that are not on this machine."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


# n1 tells its kind of GPUs by a feature, n2 by a type, as clusters do.
GPUS = {"n1": "NVIDIA GeForce RTX 2070 (simulated)", "n2": "NVIDIA GeForce RTX 3070 (simulated)"}
FEATURES = {"n1": "ib,rtx_2070", "n2": "ib"}
TYPES = {"n1": "", "n2": "rtx3070"}
NODES, NUM_GPUS = tuple(GPUS), 2


class Cluster:
    """The cluster while it runs; ``environment`` is what a program needs to use it."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder = folder
        self.fakes: dict[str, FakeNvml] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for node in NODES:
            (folder / node).mkdir(parents=True)
            for number in range(NUM_GPUS):
                (folder / node / f"gpu{number}").symlink_to("/dev/null")
            self.fakes[node] = FakeNvml.create(folder / f"{node}.state", library)
            for number in range(NUM_GPUS):
                self.fakes[node].add_gpu(name=GPUS[node], uuid=f"GPU-{node}-{number:04}-0000-0000-000000000000")
        self._library = library
        self._configure()

    @property
    def environment(self) -> dict[str, str]:
        """Slurm's configuration and the fake library; the controller itself has no GPU."""
        return {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": PATH,
            "LD_LIBRARY_PATH": str(self._library.parent),
            "COLOCATE_LOCK_FOLDER": str(self.folder / "locks"),  # the GPUs of two clusters have the same UUIDs
        }

    def _configure(self) -> None:
        folder, host = self.folder, socket.gethostname().partition(".")[0]
        control, *ports = _free_ports(1 + len(NODES))
        (folder / "state").mkdir()
        lines = [
            "ClusterName=colocate",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={control}",
            "AuthType=auth/munge",
            "CredType=cred/munge",
            f"AuthInfo=socket={folder}/munge.socket",
            f"SlurmUser={USER}",
            f"SlurmdUser={USER}",
            f"StateSaveLocation={folder}/state",
            f"SlurmdSpoolDir={folder}/spool-%n",
            f"SlurmctldPidFile={folder}/slurmctld.pid",
            f"SlurmdPidFile={folder}/slurmd-%n.pid",
            f"SlurmctldLogFile={folder}/slurmctld.log",
            f"SlurmdLogFile={folder}/slurmd-%n.log",
            f"TaskProlog={folder}/prolog.sh",
            "MailProg=/bin/true",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SwitchType=switch/none",
            "MpiDefault=none",
            "JobAcctGatherType=jobacct_gather/none",
            "AccountingStorageType=accounting_storage/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU_Memory",
            "DefMemPerCPU=100",
            "SlurmdParameters=config_overrides",  # more processors than the machine has
            "SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0",
            "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
            "ReturnToService=2",
            "SlurmdTimeout=2",
            "MessageTimeout=5",
            "InactiveLimit=30",
            "KillWait=5",
            "GresTypes=gpu",
            *(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} {SIZE} Feature={FEATURES[node]} "
                f"Gres={':'.join(filter(None, ('gpu', TYPES[node], str(NUM_GPUS))))}"
                for node, port in zip(NODES, ports, strict=True)
            ),
            "PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP",
            "PartitionName=short Nodes=ALL MaxTime=1 State=UP",
            "PartitionName=closed Nodes=ALL State=DOWN",
        ]
        (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        files = f"gpu[0-{NUM_GPUS - 1}]"
        gres = [
            f"NodeName={node} Name=gpu {TYPES[node] and f'Type={TYPES[node]} '}File={folder}/{node}/{files}"
            for node in NODES
        ]
        (folder / "gres.conf").write_text("\n".join(gres) + "\n")
        prolog = folder / "prolog.sh"
        prolog.write_text(f'#!/bin/sh\necho "export FAKE_NVML_STATE={folder}/$SLURMD_NODENAME.state"\n')
        prolog.chmod(0o755)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)

    def start(self) -> None:
        """Start everything, and wait until the nodes take jobs."""
        folder = self.folder
        ends = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        files = [f"--{name}={folder}/munge.{end}" for name, end in ends.items()]
        self._start("munged", ["munged", "--foreground", "--force", "--num-threads=2", *files])
        wait_until(lambda: (folder / "munge.socket").exists())
        self._start("slurmctld", ["slurmctld", "-D", "-f", str(folder / "slurm.conf")])
        for node in NODES:
            self.start_node(node)
        wait_until(lambda: all(state == "idle" for state in self.states().values()))

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self._start(node, ["slurmd", "-D", "-f", str(self.folder / "slurm.conf"), "-N", node])

    def _start(self, name: str, words: list[str]) -> None:
        said = (self.folder / f"{name}.out").open("ab")
        with said:
            self._processes[name] = subprocess.Popen(
                words,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def ask(self, *words: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(
            words, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False, timeout=120
        )
        return done.stdout.strip()

    def states(self) -> dict[str, str]:
        """The nodes and how they are."""
        rows = self.ask("sinfo", "-h", "-N", "-p", "gpu", "-o", "%N %T").splitlines()
        return {row.split()[0]: row.split()[1] for row in rows} if len(rows) == len(NODES) else {"": "?"}

    def jobs(self) -> list[str]:
        """Everything in the queue."""
        return self.ask("squeue", "-h", "-o", "%A %j %T %r %N").splitlines()

    def pending(self) -> list[str]:
        """The ids of what waits in the queue."""
        return self.ask("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i").splitlines()

    def begin_at_once(self) -> None:
        """Slurm holds back a job that it has put back into the queue for two minutes."""
        for job in self.pending():
            self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")

    @contextlib.contextmanager
    def occupied(self, gpus: int | None = None) -> Iterator[None]:
        """Somebody else's jobs on all GPUs, or on so many of them."""
        count = len(NODES) * NUM_GPUS if gpus is None else gpus
        words = ["sbatch", "--parsable", "--gres=gpu:1", "--output=/dev/null", "--wrap=exec sleep 600"]
        jobs = [self.ask(*words) for _ in range(count)]
        try:
            wait_until(lambda: sum("RUNNING" in job for job in self.jobs()) == count)
            yield
        finally:
            self.ask("scancel", *jobs)
            wait_until(lambda: not self.jobs())

    def lose(self, node: str) -> None:
        """A node goes as when its power fails: slurmd, its steps and all that runs in them."""
        lost = self._on(node)
        self._processes[node].kill()
        self._processes[node].wait()
        for pid in lost:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _on(self, node: str) -> list[int]:
        """Processes of a node: those with its GPUs, and steps of Slurm, which keep its log or its spool folder open."""
        files = (f"{self.folder}/spool-{node}", f"{self.folder}/slurmd-{node}.log")
        steps = [pid for pid in _pids() if _command(pid).startswith("slurmstepd") and _has_open(pid, files)]
        return self._with_gpus_of(f"{node}.state") + steps

    def _with_gpus_of(self, name: str) -> list[int]:
        begins = f"{self.folder}/{name}"
        return [pid for pid in _pids() if (variable_of(pid, "FAKE_NVML_STATE") or "").startswith(begins)]

    def left(self) -> list[str]:
        """What still runs with this cluster in its environment, but for the cluster itself."""
        ours = {process.pid for process in self._processes.values()}
        return [_command(pid) for pid in self._with_gpus_of("") if pid not in ours]

    def stop(self) -> None:
        """End everything."""
        self.ask("scancel", "--state=PENDING", f"--user={USER}")
        self.ask("scancel", f"--user={USER}")
        deadline = time.monotonic() + 60
        while self.jobs() and time.monotonic() < deadline:
            time.sleep(0.1)
        for name in (*NODES, "slurmctld", "munged"):
            process = self._processes.get(name)
            if process is not None and process.poll() is None:
                process.terminate()
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            if process.poll() is None:
                process.kill()
                process.wait()
        for fake in self.fakes.values():
            fake.close()


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def _has_open(pid: int, files: tuple[str, ...]) -> bool:
    with contextlib.suppress(OSError):
        return any(str(link.readlink()).startswith(files) for link in Path(f"/proc/{pid}/fd").iterdir())
    return False
