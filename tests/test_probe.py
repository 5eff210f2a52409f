"""The injected probe: what it counts on a real GPU, and that it leaves every other program alone."""

import ast
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from emulated import INJECT, Bench, wait_until

from colocate.probe.counting import Counters
from colocate.probe.imports import AfterImport
from colocate.probe.origin import installed_packages, is_own
from colocate.probe.record import Record

PROBE = Path(__file__).parents[1] / "colocate" / "probe"
COUNTING = ("__init__", "start", "imports", "record", "history", "counting", "inject/sitecustomize")

TRAIN_ON_THE_HOST = """
import torch
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
"""


@pytest.fixture
def bench(tmp_path):
    """Programs under the counting probe: no virtual GPU."""
    return Bench(tmp_path, gpu_mib=None)


class FakeCuda:
    """``torch.cuda`` with counters that the test moves and a program resets."""

    def __init__(self) -> None:
        self.initialised = True
        self.current = self.peak = self.ooms = self.grown = 0

    def is_initialized(self) -> bool:
        return self.initialised

    def device_count(self) -> int:
        return 1

    def memory_stats(self, index: int) -> dict[str, int]:
        return {
            "allocated_bytes.all.current": self.current,
            "allocated_bytes.all.peak": self.peak,
            "reserved_bytes.all.current": self.current,
            "reserved_bytes.all.peak": self.peak,
            "reserved_bytes.all.allocated": self.grown,
            "num_ooms": self.ooms,
            "num_alloc_retries": 0,
        }

    def use(self, num_bytes: int) -> None:
        self.grown += max(0, num_bytes - self.current)
        self.current = num_bytes
        self.peak = max(self.peak, num_bytes)

    def reset_peak(self) -> None:
        self.peak = self.current

    def reset_accumulated(self) -> None:
        self.ooms = self.grown = 0


@pytest.mark.parametrize("name", COUNTING)
def test_the_counting_probe_is_code_for_python_3_8(name: str) -> None:
    """It used to fail to load there, in silence: annotations with ``|``, and arguments that came later."""
    tree = ast.parse((PROBE / f"{name}.py").read_text(), feature_version=(3, 8))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    keywords = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    signed = [node for node in ast.walk(tree) if isinstance(node, ast.arg | ast.FunctionDef | ast.AnnAssign)]
    notes = [getattr(node, "annotation", None) or getattr(node, "returns", None) for node in signed]
    annotated = any(isinstance(part, ast.BinOp) for note in notes if note for part in ast.walk(note))
    future = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)

    assert not names & {"removeprefix", "removesuffix", "cache", "pairwise"}
    assert "strict" not in keywords
    assert future or not annotated


class NoStatistics(FakeCuda):
    """An allocator of the program's own, set by ``torch.cuda.memory.change_current_allocator``."""

    def memory_stats(self, index: int) -> dict[str, int]:
        raise RuntimeError("CUDAPluggableAllocator does not yet support getDeviceStats. If you need it, ask")


def test_an_allocator_without_counters_costs_neither_the_record_nor_the_program():
    """The record used to be given up with its steps, and a program that reset its peaks failed because of us."""
    notes, calls = [], []
    counters = Counters(NoStatistics(), notes.append)

    counters.safe_from(lambda: calls.append("reset"))()

    assert counters.read() == {}
    assert calls == ["reset"]
    assert set(notes) == {
        "the allocator tells nothing: CUDAPluggableAllocator does not yet support getDeviceStats. If you need it, ask"
    }


def test_a_peak_between_two_readings_and_counts_survive_a_reset():
    """Else as much growth since the reset as before it would hide what came and went since the last reading."""
    cuda = FakeCuda()
    counters = Counters(cuda)
    cuda.initialised = False
    assert counters.read() == {}, "until the program uses CUDA"
    cuda.initialised = True
    reset_peak, reset = counters.safe_from(cuda.reset_peak), counters.safe_from(cuda.reset_accumulated)
    cuda.use(1000)
    cuda.use(0)
    cuda.ooms = 2

    reset_peak()
    reset()
    cuda.ooms = 1
    cuda.use(700)
    cuda.use(20)

    found = counters.read()
    assert (found["max_allocated_bytes"], found["allocated_bytes"]) == (1000, 20)
    assert (found["num_ooms"], found["reserved_grown_bytes"]) == (3, 1700)


def test_what_a_forked_child_held_before_its_first_step_is_in_its_history(tmp_path):
    record = Record(str(tmp_path), "cuda", "2.14.1")
    child = os.fork()
    if not child:
        time.sleep(0.2)
        held = {"reserved_bytes": 10, "max_reserved_bytes": 900, "reserved_grown_bytes": 900}
        record.read = lambda: held
        record.step()
        os._exit(0)
    os.waitpid(child, 0)

    (step, *_) = json.loads((tmp_path / f"{child}.json").read_text())["history"]
    assert step[1] == 900
    assert time.monotonic() - step[0] > 0.2, "since the fork"


def test_a_record_that_cannot_be_written_is_given_up_quietly(tmp_path, capsys):
    record = Record(str(tmp_path / "missing"), "cuda", "2.14.1")

    record.write()
    record.write()

    assert capsys.readouterr().err.count("probe record given up") == 1


def test_a_watched_module_is_acted_on_after_its_import_has_finished(tmp_path, monkeypatch):
    (tmp_path / "watched_module.py").write_text("value = 1\nvalue = 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    watcher = AfterImport()
    watcher.when("watched_module", lambda module: seen.append(module.value))
    monkeypatch.setattr(sys, "meta_path", [watcher, *sys.meta_path])

    import watched_module  # noqa: F401

    assert seen == [2]


def test_nothing_of_ours_becomes_importable_and_without_the_harness_or_torch_nothing_is_loaded(bench):
    """Through what the harness puts on the path; the project may be installed in this interpreter all the same."""
    # An editable installation of this project puts a finder of that name into every interpreter.
    ours = "print([m for m in sys.modules if 'colocate' in m and '__editable' not in m])"
    names = "('colocate', 'workloads', 'fixtures', 'conftest', 'tests')"
    path = "os.environ['PYTHONPATH'].split(':')"
    find = f"from importlib.machinery import PathFinder as f; print([f.find_spec(n, {path}) for n in {names}])"
    run = bench.run("-c", f"import json, os, sys; print('torch' in sys.modules, 'colocate' in sys.modules); {find}")
    assert run.exit_code == 0
    assert run.output.splitlines() == ["False False", str([None] * 5)]
    assert run.records == []

    variables = {name: value for name, value in bench.variables().items() if not name.startswith("COLOCATE")}
    command = [sys.executable, "-c", f"import sys; {ours}"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_another_sitecustomize_down_the_path_still_runs(bench, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('the other one')")
    bench.environment["PYTHONPATH"] = f"{INJECT}:{tmp_path}"

    run = bench.run("-c", "import sitecustomize; print(sitecustomize.__file__)")

    assert run.output.splitlines() == ["the other one", str(tmp_path / "sitecustomize.py")]


def test_a_broken_probe_does_not_break_the_training(bench, tmp_path):
    inject = tmp_path / "probe_copy" / "inject"
    inject.mkdir(parents=True)
    (inject / "sitecustomize.py").write_text((INJECT / "sitecustomize.py").read_text())
    (inject.parent / "__init__.py").write_text("raise RuntimeError('broken')")
    bench.environment["PYTHONPATH"] = str(inject)

    run = bench.run("-c", "print('trained')")

    assert run.exit_code == 0
    assert "trained" in run.output
    assert "colocate: probe not loaded: RuntimeError: broken" in run.output


@pytest.mark.slow
def test_steps_are_counted_also_of_a_forked_child_and_a_loaders_workers_have_no_record(bench):
    run = bench.run_source(f"""
import multiprocessing
def train():
{textwrap.indent(TRAIN_ON_THE_HOST, "    ")}
child = multiprocessing.get_context("fork").Process(target=train)
import torch
loader = torch.utils.data.DataLoader(torch.arange(8), batch_size=2, num_workers=2)
assert sum(len(batch) for batch in loader) == 8
child.start()
child.join()
train()
print(child.pid, torch.cuda.is_initialized())
""")

    assert run.exit_code == 0, run.output
    child, initialised = run.output.split()
    assert initialised == "False", "the probe does not initialise CUDA"
    records = {record["pid"]: record for record in run.records}
    assert len(records) == 2
    assert records.pop(int(child))["optimizer_steps"] >= 1, "the last may fall into the quarter of a second at its end"
    (record,) = records.values()
    assert record["mode"] == "cuda"
    assert record["optimizer_steps"] == 3
    assert record["started_t"] < record["first_step_t"] <= record["last_step_t"] <= record["t"]
    assert record["max_reserved_bytes"] is None
    assert record["num_ooms"] == 0
    assert record["torch"].startswith("2.")


@pytest.mark.slow
def test_a_killed_process_leaves_a_usable_record(bench):
    program = bench.folder / "endless.py"
    program.write_text(TRAIN_ON_THE_HOST.replace("range(3)", "iter(int, 1)"))

    with bench.running(program) as process:
        wait_until(lambda: any(record["optimizer_steps"] > 1 for record in bench.records()))
        process.send_signal(signal.SIGKILL)
        process.wait()

    (record,) = bench.records()
    assert record["optimizer_steps"] > 1
    assert Path(bench.probe / f"{record['pid']}.json").exists()


def test_packages_lie_wherever_an_installer_put_them(tmp_path, monkeypatch):
    """Every function of ``pip install --target deps`` was read as the program's own, which took a minute for torch."""
    deps, program = tmp_path / "deps", tmp_path / "program"
    for folder in (deps, program):
        (folder / f"some_{folder.name}-1.0.dist-info").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(program), str(deps), *sys.path[1:]])
    is_own.cache_clear()

    assert is_own(str(program / "train.py"))
    assert not is_own(str(deps / "torch" / "nn" / "modules.py"))
    assert "some_deps-1.0" in installed_packages()
    is_own.cache_clear()
