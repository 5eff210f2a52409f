import os
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.errors import ColocateError
from colocate.files import read_json, safe_name, write_json, write_text
from colocate.results.layout import RunDirectory

NOW = datetime(2026, 11, 24, 5, 30)


def test_a_run_is_named_by_its_second_and_a_group_by_its_foreground_and_number(tmp_path: Path) -> None:
    runs = [RunDirectory.new(tmp_path, NOW) for _ in range(3)]
    assert [run.name for run in runs] == ["run_20261124_053000", "run_20261124_053000_2", "run_20261124_053000_3"]

    for more, name in (
        ({"parallel": True}, "mnist_parallel_002"),
        ({"parallel": False}, "mnist_002"),
        ({"parallel": True, "repeat": 2}, "mnist_parallel_002_run2"),
    ):
        assert runs[0].group("mnist", 2, **more).path.name == name


@given(st.text())
def test_no_name_leaves_the_run_directory(name: str) -> None:
    folder = RunDirectory(Path("/run")).group(name, 1, parallel=True).path

    assert folder.parent == Path("/run")
    assert Path(os.path.normpath(folder)) == folder
    assert safe_name(name).isascii()


def test_a_group_with_a_record_is_not_run_over(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path).group("a", 1, parallel=True).create()
    directory.experiment.write_text("{}")

    with pytest.raises(ColocateError, match="expected a new folder, found the record of an earlier run"):
        directory.create()


def test_a_file_in_the_place_of_a_folder_or_half_a_record_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "results").write_text('{"a": ')

    with pytest.raises(ColocateError, match=r"could not write the folder .*results"):
        RunDirectory.new(tmp_path / "results", NOW)
    with pytest.raises(ColocateError, match=r"results: expected a JSON record"):
        read_json(tmp_path / "results")


def test_a_failed_write_leaves_the_old_content_and_no_scrap(tmp_path: Path) -> None:
    path, folder = tmp_path / "record.json", tmp_path / "folder"
    write_text(path, "old")
    folder.mkdir()

    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(path, {"value": float("nan")})
    with pytest.raises(IsADirectoryError):  # once all is written aside
        write_text(folder, "new")

    assert path.read_text() == "old"
    assert set(tmp_path.iterdir()) == {path, folder}


def test_a_run_that_recorded_something_is_not_discarded(tmp_path: Path) -> None:
    empty, used = (RunDirectory.new(tmp_path, NOW) for _ in range(2))
    for run in (empty, used):
        run.reserve()
        write_json(run.record, {})
    used.group("a", 1, parallel=True).create()
    for run in (empty, used):
        run.discard()

    assert not empty.path.exists()
    assert used.record.exists()


def test_a_run_is_held_by_one_session_and_let_go_with_it(tmp_path: Path) -> None:
    run = RunDirectory.new(tmp_path, NOW)
    with run.locked(), pytest.raises(ColocateError, match=f"found it held by pid {os.getpid()}"), run.locked():
        pass
    with run.locked():
        pass

    assert list(run.path.iterdir()) == []


def test_a_new_run_gives_back_the_room_of_those_that_were_killed(tmp_path: Path) -> None:
    """A killed session that nobody resumed used to keep its 8 MiB for ever; one that goes on keeps them still."""
    now = datetime(2026, 11, 24)
    killed, going_on = RunDirectory.new(tmp_path, now), RunDirectory.new(tmp_path, now)
    side = killed.side_run("remedies")
    side.path.mkdir()
    (killed.path / ".lock").write_text("4000000")  # SIGKILL leaves the file, the kernel lets go of the lock
    with going_on.locked():
        for run in (killed, side, going_on):
            run.reserve()
        RunDirectory.new(tmp_path, now)

        assert sorted(path.parent for path in tmp_path.rglob(".reserve")) == [going_on.path]
    assert killed.path.is_dir()
