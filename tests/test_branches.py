"""What hangs on a test in a program: a check, a loop, or work that may need memory."""

import sys
from pathlib import Path
from typing import Any

import pytest

from colocate.probe.coverage import watch
from colocate.probe.coverage.branches import Branch, branch_at, compares, number_decides

PROGRAM = """\
def check(bad, fine, work):
    if bad: raise ValueError("no")
    if not fine:
        raise ValueError(f"{work} and more")
    assert fine, "told"
    assert not bad and fine
    if bad:
        print("bye"); exit(1)

def sides(no, yes, work, save_model):
    best = stage = waited = 0
    if no: work()
    if no:
        best = 1
        print("best")
        save_model(best)
    else:
        waited += 1
    for _ in range(2):
        if no: break
        if no: stage += 1
    while no:
        work()
    while True:
        if yes: break
    if waited > 3: return
    if stage > 2: work()
    kept = bool(yes)
    return kept

def later(number, work):
    loss = number()
    print(number())
    if loss < 1: work()

def typed(number, work):
    loss = number()
    if isinstance(loss, list) or loss is None: work()
"""


class Asked:
    """A truth value that keeps the branch behind every place that asks for it."""

    def __init__(self, value: bool, found: dict[int, list[Branch]]) -> None:
        self.value, self.found = value, found

    def __bool__(self) -> bool:
        frame = sys._getframe(1)
        branch = branch_at(frame.f_code, frame.f_lasti, frame.f_lineno)
        self.found.setdefault(frame.f_lineno, []).append(branch)
        return self.value


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The program above, with its source in a file."""
    path = tmp_path_factory.mktemp("program") / "train.py"
    path.write_text(PROGRAM)
    names: dict[str, Any] = {}
    exec(compile(PROGRAM, str(path), "exec"), names)
    return path, names


def test_a_branch_that_only_raises_is_a_check_and_its_healthy_answer_is_known(program) -> None:
    found: dict[int, list[Branch]] = {}
    program[1]["check"](Asked(False, found), Asked(True, found), print)

    healthy = {line: [branch.healthy for branch in branches] for line, branches in found.items()}
    assert healthy == {2: [False], 3: [True], 5: [True], 6: [False, True], 7: [False]}


def test_sides_weigh_by_what_they_call_set_and_leave(program) -> None:
    found: dict[int, list[Branch]] = {}
    program[1]["sides"](Asked(False, found), Asked(True, found), print, print)

    weighs = {line: (branches[0].true_weighs, branches[0].false_weighs) for line, branches in found.items()}
    stays = {line: branches[0].stays for line, branches in found.items() if branches[0].stays is not None}
    assert weighs[12] == (True, False), "a call of the program"
    assert weighs[13] == (False, False), "printing, saving and counting move no memory"
    assert weighs[20] == (False, True), "leaving a loop leaves the rest of it out"
    assert weighs[21] == (True, False), "what is set decides about work further down"
    assert stays == {22: True, 25: False}


WATCHED = """\
class Stopping:
    best, counter, stop = 1.0, 0, False
    def __call__(self, score):
        if score < self.best + 0.1:
            self.counter += 1
            if self.counter >= 5:
                self.stop = True
        else:
            restart()

def closed():
    best = 1.0
    def check(score):
        nonlocal best
        if score < best:
            raise ValueError(score)
        best = score
    return check
"""


class Compared(Asked):
    """The same for a number that is compared."""

    def __lt__(self, other: object) -> bool:
        frame = sys._getframe(1)
        self.found[frame.f_lineno] = [branch_at(frame.f_code, frame.f_lasti, frame.f_lineno)]
        return self.value


def test_a_test_that_is_watched_is_read_like_any_other(tmp_path, monkeypatch) -> None:
    """Its sides were unreadable, so that every early stopping was run a second time with the other answer."""
    path = tmp_path / "own.py"
    path.write_text(WATCHED)
    monkeypatch.setattr(watch, "is_own", lambda name: name == str(path))
    scope: dict[str, Any] = {"restart": print}
    exec(compile(WATCHED, str(path), "exec"), scope)
    called = [scope["Stopping"](), scope["closed"]()]
    watch.Watch().put_into_functions("loop", None)

    found: dict[int, list[Branch]] = {}
    for one in called:
        one(Compared(False, found))

    assert found[4] == [Branch(None, None, False, True)]
    assert found[15][0].healthy is False


def test_a_number_decides_if_a_test_of_it_has_work_behind_it(program) -> None:
    path, names = program
    assert number_decides(str(path), 32)
    assert not number_decides(str(path), 33)
    assert not number_decides("no such file", 1)
    assert not number_decides(str(path), 37), "whatever its value, its type is the same"

    code = names["later"].__code__
    assert not compares(code, 0)
