"""How far a dry run goes, and what it says about the rest."""

import ast
import random
from types import SimpleNamespace

import pytest
import torch
from emulated import PROGRAMS, Bench, Run

import colocate.probe.coverage.watch
from colocate.probe.coverage.conditions import condition_of, move_counters
from colocate.probe.coverage.growth import StepMemory
from colocate.probe.coverage.longest import Longest, _are_bounded
from colocate.probe.coverage.series import _move_of
from colocate.probe.coverage.watch import Watch

MIB = 1 << 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All loops in one process, since most of the time goes into importing torch."""
    bench = Bench(
        tmp_path_factory.mktemp("covered"), gpu_mib=1 << 20, batches_per_pass=3, environment={"COLOCATE_TRACE": "1"}
    )
    return bench.run(PROGRAMS / "covered.py", timeout_s=600)


def peak_mib(run: Run, loop: str) -> int:
    return next(int(line.split()[2]) for line in run.output.splitlines() if line.startswith(f"-- {loop} "))


@pytest.mark.slow
def test_nothing_that_is_computed_from_a_length_or_a_number_breaks(run: Run) -> None:
    """``len(loader)`` used to be 3: ten logs per epoch divided by zero, and arrays were filled in the wrong places."""
    assert run.exit_code == 0, run.output[-3000:]
    loops = run.record["coverage"]["loops"]
    assert sum(one["batches_run"] for one in loops) < 1500, "the passes were cut"
    evaluated = next(one for one in loops if one["batches_whole"] == 3_000)
    assert evaluated["batches_run"] < 1500, "turns of an evaluation that are alike to the byte"
    assert next(one for one in loops if one["batches_whole"] == 9001)["passes"] == 1


@pytest.mark.slow
def test_what_is_reached_late_is_in_the_peak(run: Run) -> None:
    """Accumulation, a phase at a step, the longest batch: three batches a pass used to show none of them."""
    assert peak_mib(run, "accumulated") > 4 * 6 * 16, "parameters, gradients, and two states of Adam"
    assert peak_mib(run, "late_phase") > 4 * 64
    assert peak_mib(run, "late_phase_of_an_object") > 4 * 64, "its counter is an attribute, tested in a method"
    assert peak_mib(run, "late_phases_by_a_length_and_by_a_buffer") > 5 * 64, "`number == len(loader) // 2`, a buffer"
    assert peak_mib(run, "epochs") > 4 * 64, "of 5,000 turns those that repeat others were left out"
    assert peak_mib(run, "longest") > 4 * 30_000 * 512 * 4 // MIB


@pytest.mark.slow
def test_memory_that_grows_is_told_with_its_line_and_its_steps(run: Run) -> None:
    """A leak used to fit: three batches of it are small."""
    coverage = run.record["coverage"]
    source = (PROGRAMS / "covered.py").read_text().splitlines()
    line = next(number for number, text in enumerate(source, 1) if "# kept here" in text)
    leak, now_and_then, replaced, streamed, turns = coverage["growth"]

    assert leak["place"] == f"covered.py:{line}"
    assert leak["bytes_per_step"] >= 512 * 512 * 4
    assert leak["steps_seen"] + leak["steps_left"] == 1 << 14
    assert coverage["growth_bytes"] > 15_000 * MIB
    assert coverage["certain_growth_bytes"] > 15_000 * MIB, "each step goes through that line"
    assert now_and_then["bytes_per_step"] == 4 * MIB
    assert 3_270 < now_and_then["steps_left"] < 3_277, "every fifth"
    assert replaced["bytes_per_step"] == MIB, "a bank that torch.cat makes anew"
    assert streamed["steps_left"] is None
    assert turns["bytes_per_step"] >= 512 * 512 * 4
    assert 4_900 < turns["steps_left"] < 5_000
    doubts = sorted(code for code, _ in coverage["doubts"])
    assert doubts == ["longest_batch_unseen", "memory_grows"], "of the two streams, whose batches nobody knows ahead"
    told = dict(coverage["doubts"])["longest_batch_unseen"]
    assert "collects on the host" in told, "features of all data, of which a cut pass has some"


# Without a program.


def test_only_what_every_step_leaves_behind_is_growth() -> None:
    memory, number = StepMemory(), 0
    for step in range(12):
        for size, lives in ((MIB, step == 0), (2 * MIB, True), (512, step == 5)):
            number += 1
            memory.allocated(number, size, 0)
            if not lives or (size == 2 * MIB and step < 4):
                memory.freed(number)
        memory.next_step()

    assert memory.kept(1)[:2] == (7, 10), "the last two steps still hold their variables"
    assert memory.kept(4).grows
    assert not memory.kept(8).grows, "three steps may be a queue"
    assert memory.still_held(0, 0) == MIB

    queue, live = StepMemory(), []
    for step in range(12):
        live.append(step)
        queue.allocated(step, MIB, 0)
        if len(live) > 6:
            queue.freed(live.pop(0))
        queue.next_step()
    assert queue.kept(0).steps >= 4
    assert not queue.kept(0).matters(1000), "batches that wait for their optimizer step were taken for a leak"


CONDITIONS = """
class Trainer:
    def step(self, number):
        self.steps += 1
        if self.steps % self.every == 0:
            evaluate()
        if number % 10 == 9:
            print(number)
        if self.every and number > 50:
            unfreeze()
        self.kept.append(torch.ones(1))
        if len(self.kept) >= 90:
            evaluate()
        return len(self.seen) > 3

def counting():
    count = 0
    def step():
        nonlocal count
        count += 1
        if is_main() and count == 70:
            evaluate()
    return step
is_main = lambda: True
"""


def test_a_condition_on_a_counter_is_asked_ahead_without_calling_the_program(tmp_path, monkeypatch) -> None:
    """Counters on objects and in closures gave no doubt: a phase at step 100 was silently left out."""
    path = tmp_path / "own.py"
    path.write_text(CONDITIONS)
    monkeypatch.setattr(colocate.probe.coverage.watch, "is_own", lambda name: name == str(path))
    scope: dict = {"torch": torch}
    exec(compile(CONDITIONS, str(path), "exec"), scope)
    trainer, step, watch = scope["Trainer"](), scope["counting"](), Watch()
    trainer.steps, trainer.every, trainer.seen, trainer.kept = 0, 100, [], []
    watch.put_into_functions("loop", None)
    level = SimpleNamespace(place="loop", given=0, whole=500, outer=None)
    watch.begin(level)
    for level.given in range(1, 4):
        trainer.step(level.given - 1)
        step()

    news = {one.text: (one.news(level, 500)[:1], one.weighs) for one in watch.conditions()}
    assert news == {
        "self.steps % self.every == 0": ([97], True),
        "number % 10 == 9": ([7], False),
        "self.every and number > 50": ([49], True),
        "len(self.kept) >= 90": ([87], True),
        "len(self.seen) > 3": ([], True),
        "is_main() and count == 70": ([67], True),
    }
    move_counters(watch.noted_in(level), level, 66)
    scope["evaluate"] = [].append
    assert (trainer.steps, step.__closure__[0].cell_contents) == (69, 69)
    (filled,) = [one for one in watch.conditions() if "kept" in one.text]
    assert filled.news(level, 500)[:1] == [21], "of 66 steps that were left out nothing is in the list"
    with pytest.raises(TypeError):
        step()  # the phase at step 70


BY_THE_CLOCK = """
import time
class Trainer:
    last = reported = time.time()
    def step(self):
        now = time.time()
        if now - self.reported > 10:
            self.report()
        if time.time() - self.last > 60:
            self.look()
        if now - self.last > 3600:
            return True
    def report(self):
        print("evaluated", now)
    def look(self):
        evaluate()
"""


def test_a_phase_by_the_clock_is_awaited_and_a_line_in_a_log_is_not(tmp_path, monkeypatch) -> None:
    """A dry run is over in seconds: an evaluation every minute was never seen, and the program said to fit."""
    path = tmp_path / "own.py"
    path.write_text(BY_THE_CLOCK)
    monkeypatch.setattr(colocate.probe.coverage.watch, "is_own", lambda name: name == str(path))
    scope: dict = {}
    exec(compile(BY_THE_CLOCK, str(path), "exec"), scope)
    trainer, watch = scope["Trainer"](), Watch()
    watch.put_into_functions("loop", None)
    level = SimpleNamespace(place="loop", given=0, whole=500, outer=None)
    watch.begin(level)
    for level.given in range(1, 6):
        trainer.step()

    assert [one.text for one in watch.conditions() if one.comes_with_time(level)] == ["time.time() - self.last > 60"]


class Texts(torch.utils.data.Dataset):
    def __init__(self, lengths, generator=None) -> None:
        self.lengths = lengths
        self.random = random.Random(0)
        self.generator = generator

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index):
        self.random.random()
        torch.rand(1)
        return {"ids": [0] * self.lengths[index]}


def test_the_longest_batch_is_found_without_moving_a_random_number() -> None:
    budget = SimpleNamespace(look_s=60.0, doubts=[])
    budget.doubt = lambda code, text: budget.doubts.append(code)
    lengths = [10 + i % 7 for i in range(400)]
    lengths[333] = 99
    data = Texts(lengths)
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    order = [list(range(first, first + 4)) for first in range(0, 400, 4)]
    before = torch.get_rng_state(), data.random.getstate()

    assert 333 // 4 in Longest(budget).batches(loader, order)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert data.random.getstate() == before[1]
    assert not Longest(budget).batches(torch.utils.data.DataLoader(Texts(lengths, iter(lengths))), order)
    budget.look_s = 0.0
    Longest(budget).batches(loader, order)
    assert budget.doubts == ["longest_batch_unseen"]


def test_samples_that_are_not_looked_at_are_a_doubt_only_where_sizes_have_no_end() -> None:
    """Pictures of six sizes, and texts up to a limit, used to leave a program undecided."""
    rare = [20 + i % 40 for i in range(1000)]
    assert _are_bounded(rare, 2_000)
    assert not _are_bounded([*rare, 2000], 2_000), "there may be a longer one"
    assert not _are_bounded(rare, 2_001), "too few were looked at"
    assert not _are_bounded(rare[:100], 200)
    assert _are_bounded([1000, 1005], 10_000), "pictures with some boxes each"


def test_a_clock_is_no_counter():
    """A progress line that is due every ten seconds used to leave every program with one undecided."""
    assert _move_of((7.013, 7.391, 8.112, 8.114)) == 0
    assert _move_of((0.1, 0.2, float("inf"))) == 0, "a moment that has not come"
    assert _move_of((3, 5, 9, 10)) > 0, "steps that are not all alike"
    assert _move_of((0.1, 0.2, 0.3)) == pytest.approx(0.1), "a share of an epoch"


@pytest.mark.parametrize(
    ("source", "weighs"),
    [
        (
            "def rate(step):\n if step < 9:\n  return peak * step / 9\n return low + 0.5 * (1 + math.cos(step)) * peak",
            False,
        ),
        ("def rate(step):\n if step < 9:\n  return float(step) / float(max(1, 9))\n return 0.1", False),
        ("def should_log(step):\n return step % 9 == 0", False),
        ("def is_due(step):\n return step % 9 == 0", True),
        ("def weight(step):\n if step < 9:\n  return 0.0\n return 1.0", True),
        ("def size(step):\n if step < 9:\n  return 32 // 2\n return 64", True),
        ("def part(self, step):\n if step < 9:\n  return step / 9\n self.batch = 64\n return 1", True),
        ("def loss(step, x):\n if step < 9:\n  return first(x) / 9\n return both(x) / 9", True),
    ],
)
def test_what_only_a_learning_rate_or_a_log_hangs_on_needs_no_memory(source, weighs):
    """A warm-up that a schedule of PyTorch counts, or a log of Lightning, used to leave a program undecided."""
    tree = ast.parse(source)
    function = tree.body[0]
    node = function.body[0]
    test = getattr(node, "test", None) or node.value
    assert condition_of("trainer.py:2", node, test, function, tree, own=False).weighs == weighs
    if "log" in function.name:
        assert condition_of("train.py:2", node, test, function, tree, own=True).weighs, (
            "it may make images to be logged"
        )


def test_what_a_module_moves_was_not_collected_however_many_rows_it_has() -> None:
    """Encodings of 256 positions, moved after four batches of 64, left a group of the study undecided."""
    from colocate.probe.coverage.collected import Collected, Grown

    told: list[str] = []
    collected = Collected(lambda code, text: told.append(code))
    collected._grown[0, "loop"] = Grown({256}, "loop", 4, 625)
    module = torch.nn.Module()
    module.register_buffer("positions", torch.zeros(256, 1024))

    def move(tensor: object) -> object:
        collected.moved(tensor)
        return tensor

    module._apply(move)
    assert not told
    move(module.positions)
    assert told == ["longest_batch_unseen"]
