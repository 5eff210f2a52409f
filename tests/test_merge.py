"""Journal files and what is made of them: the same figures as in the run that they come from."""

import base64
import csv
import gzip
import json
import re
import shutil
from pathlib import Path

import pytest
import sessions
from sessions import colocate, entry, pair, plan, simulated_machine, stand_in

from colocate.results import archive
from colocate.results.group_result import GroupResult
from colocate.results.layout import RunDirectory
from colocate.results.merge import Entry, _contradictions, _latest

pytestmark = pytest.mark.slow


def paired(*options):
    """A training whose steps take 20 ms alone and 30 beside another."""
    return stand_in("--probe", "--step-s=0.02", "--shared-step-s=0.03", *options) | {"repeat_args": ["--repeat"]}


PLAN = [
    pair(paired("--hold=2000", "--steps=60"), paired("--hold=900")),
    entry("--hold=7000", "--steps=20", "--probe"),
    entry("--hold=100", "--steps=20", "--flood=300000", "--oom-at=9"),
    entry("--stub"),
]


@pytest.fixture(scope="module")
def carried(fake_nvml_library, tmp_path_factory):
    """A run, and the journal file that it wrote."""
    folder = tmp_path_factory.mktemp("carried")
    with pytest.MonkeyPatch.context() as patch, simulated_machine(folder, fake_nvml_library, patch) as fake:
        fake.add_gpu()
        journal = folder / "all.jsonl"
        run = sessions.run(
            plan(folder / "plan.json", PLAN),
            folder,
            *("--device=nvidia", f"--archive={journal}", "--predict=0", "--compare-solo", "--stress=1GB"),
        )
    assert len(run.verdicts) == 4, run.output
    return run, journal


def test_a_feasible_group_says_whether_it_was_worth_it(carried):
    run, _ = carried
    assert "worth it? sharing saves" in run.output
    assert (run.run / "stand_in_parallel_001/speedup.json").exists()
    assert "Is sharing worth it?" in run.page
    assert "sharing saves" in run.page
    (saved, *_) = [row["time_saved_low"] for row in summary(run.run)]
    assert float(saved) > 0
    assert colocate(run.folder, "verify", run.run).code == 0, "runs alone are no groups of the run"


def lines_of(journal):
    return [json.loads(line) for line in journal.read_text().splitlines()]


def split(journal, folder):
    """One file per group, as array tasks write them."""
    folder.mkdir(exist_ok=True)
    lines = lines_of(journal)
    head = next(line for line in lines if line["event"] == "run")
    end = next(line for line in lines if line["event"] == "ended")
    owned = {name for line in lines if line["event"] == "group" for name in line["files"]}
    rest = [line for line in lines if line["event"] == "file" and line["path"] not in owned]
    paths = []
    for line in lines:
        if line["event"] == "group":
            name = line["record"]["group"]
            files = [one for one in lines if one["event"] == "file" and one["path"] in line["files"]]
            begun = {"event": "started", "at": head["record"]["started_at"], "groups": [name], "estimates": {}}
            path = folder / f"{name}.jsonl"
            path.write_text("".join(json.dumps(one) + "\n" for one in [head, begun, *files, line, *rest, end]))
            paths.append(path)
    return paths


def merged(folder, *words):
    folder.mkdir(exist_ok=True)
    done = colocate(folder, "merge", *words)
    return done, sorted((folder / "results").glob("run_*"))


def summary(run):
    with (run / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def page(run, folder):
    """The page of a run without its name and place."""
    folder.mkdir(exist_ok=True)
    done = colocate(folder, "report", run, "--out=page.html")
    assert done.code == 0, done.output
    text = re.sub(r'(?:href|data-probe)="[^"#][^"]*"', "", (folder / "page.html").read_text())
    return text.replace(run.name, "RUN")


def test_the_journals_of_all_groups_give_every_figure_of_the_run(carried, tmp_path):
    run, journal = carried
    done, (directory,) = merged(tmp_path / "merged", *split(journal, tmp_path / "journals"))
    assert done.code == 0, done.output
    assert summary(directory) == summary(run.run)
    assert page(directory, tmp_path / "one") == page(run.run, tmp_path / "two")
    verified = colocate(tmp_path, "verify", directory)
    assert verified.code == 0, verified.output
    assert len(verified.output.splitlines()) == 4


def test_one_file_of_the_whole_run_gives_the_same(carried, tmp_path):
    run, journal = carried
    done, (directory,) = merged(tmp_path, journal)
    assert done.code == 0, done.output
    assert summary(directory) == summary(run.run)
    for path in run.run.glob("*/trace.csv"):
        assert (directory / path.parent.name / path.name).read_bytes() == path.read_bytes()


def with_second(carried, folder, change):
    """What is made of the journals of two groups, the second one's bytes changed."""
    first, second, *_ = split(carried[1], folder / "journals")
    second.write_bytes(change(second.read_bytes()))
    return merged(folder / "merged", first, second)


def torn(data):
    """In the middle of the group's own line, the one behind its files."""
    place = data.index(b'"event": "group"')
    return data[: (place + data.index(b"\n", place)) // 2]


def damaged(name):
    return lambda data: data.replace(b'"path": "stand_in_parallel_002/' + name + b'", "gzip": "', b'"gzip": "!!')


def lines_changed(change):
    """Every line changed; one that nothing is left of is gone."""

    def whole(data):
        lines = [json.loads(line) for line in data.splitlines()]
        for line in lines:
            change(line)
        return "".join(json.dumps(line) + "\n" for line in lines if line).encode()

    return whole


def say_feasible(line):
    if line["event"] == "group":
        line["record"]["outcome"] = "FEASIBLE"


def judge_feasible(line):
    say_feasible(line)
    if line.get("path", "").endswith("/verdict.json"):
        verdict = json.loads(gzip.decompress(base64.b64decode(line["gzip"])))
        text = json.dumps({**verdict, "outcome": "FEASIBLE", "reasons": []}).encode()
        line["gzip"] = base64.b64encode(gzip.compress(text)).decode()


def carry_nothing(line):
    say_feasible(line)
    if line["event"] == "group":
        line["files"] = []
    elif line["event"] == "file":
        line.clear()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (torn, r"group02.jsonl: line \d+ is torn and left out"),
        (damaged(b"trace.csv"), "group02 is left out, stand_in_parallel_002/trace.csv cannot be read"),
        # Its verdict and record are sound, only a log is not: then all of it is missing, not the half.
        (damaged(b"training.log"), "group02 is left out, stand_in_parallel_002/training.log cannot be read"),
        (lines_changed(say_feasible), "group02 is left out, it says FEASIBLE, its record INFEASIBLE"),
        (lines_changed(judge_feasible), "group02 is left out, its record does not agree: expected INFEASIBLE"),
        (lines_changed(carry_nothing), "group02 is left out, it carries no record of its verdict, FEASIBLE"),
    ],
    ids=["torn", "trace", "log", "says", "judges", "carries nothing"],
)
def test_what_is_damaged_or_does_not_follow_from_its_record_costs_its_group_only(carried, tmp_path, change, why):
    done, (directory,) = with_second(carried, tmp_path, change)
    assert done.code == 1
    assert re.search(why, done.output), done.output
    assert "in no archive: group03, group04" in done.output
    assert change is not torn or "group02: begun and without an outcome (group02.jsonl)" in done.output
    assert [row["group"] for row in summary(directory)] == ["group01"]
    assert not (directory / "stand_in_parallel_002").exists()


def test_of_a_group_that_was_run_twice_the_later_counts_and_the_page_says_so(carried, tmp_path):
    _, journal = carried
    first, *_ = split(journal, tmp_path / "journals")
    later = tmp_path / "again.jsonl"
    changed = [
        {**line, "at": "2999-01-01T00:00:00+00:00", "record": {**line["record"], "duration_s": 7.5}}
        if line["event"] == "group"
        else line
        for line in lines_of(first)
    ]
    later.write_text("".join(json.dumps(line) + "\n" for line in changed))
    done, (directory,) = merged(tmp_path / "merged", later, first)
    assert "group01: the later of 2 archives counts; before: FEASIBLE at" in done.output
    reported = [line for line in lines_of(directory / "journal.jsonl") if line["event"] == "group"]
    assert [line["record"]["duration_s"] for line in reported] == [7.5]
    assert "in group01.jsonl [merged]" in page(directory, tmp_path / "page")


def test_of_contradicting_journals_the_worse_counts_and_the_group_is_named(carried, tmp_path):
    """The one whose clock was later used to count, with exit code 0."""
    _, whole = carried
    _, second, *_ = split(whole, tmp_path / "journals")
    run_line, *_ = lines_of(second)
    found = [
        Entry(at, GroupResult("group02", outcome), (), archive.Session(tmp_path / path, name, run_line["record"]))
        for path, name, at, outcome in (
            ("a.jsonl", "run_a", "2026-01-01", "INFEASIBLE"),
            ("b.jsonl", "run_b", "2999-01-01", "FEASIBLE"),
        )
    ]
    (chosen,), (note,) = _latest(found)

    assert chosen.result.outcome == "INFEASIBLE"
    assert note.startswith("group02: the worse of 2 archives counts; not: FEASIBLE")
    assert [text.partition(":")[0] for text in _contradictions(found)] == ["group02"]


BAD_LINES = (
    {"event": "file", "path": "x.csv", "gzip": base64.b64encode(gzip.compress(bytes(80 << 20), 9)).decode()},
    {"event": "group", "record": {"group": "z", "outcome": "FEASIBLE"}, "files": [{}]},
    {"event": "group", "record": {"group": "z", "outcome": ["x"]}, "files": []},
    {"event": "group", "record": ["z"]},
    {"event": "file", "path": "stand_in_parallel_001", "gzip": base64.b64encode(gzip.compress(b"x")).decode()},
    {"event": "file", "path": "/".join("a" * 100), "gzip": base64.b64encode(gzip.compress(b"x")).decode()},
    {"event": "started", "groups": [], "estimates": [1]},
    {"event": {}},
    [],
)


def test_a_bad_line_costs_itself_only_and_is_told(carried, tmp_path):
    """Each used to end the merge in a traceback, leave half a run behind, or unpack to whatever it liked."""
    _, whole = carried
    first, *_ = split(whole, tmp_path / "journals")
    head, *rest = first.read_text().splitlines()
    first.write_text("\n".join([head, *map(json.dumps, BAD_LINES), *rest]) + "\n")
    done, (directory,) = merged(tmp_path / "merged", first)

    assert done.output.count("is damaged and left out") >= len(BAD_LINES) - 2
    assert "stand_in_parallel_001 is left out, it cannot be both a file and a folder" in done.output
    assert [row["group"] for row in summary(directory)] == ["group01"]
    assert max(path.stat().st_size for path in directory.rglob("*") if path.is_file()) < 8 << 20


def test_journals_of_different_plans_are_refused_and_what_is_none_is_told_in_a_line(carried, tmp_path):
    done, runs = with_second(carried, tmp_path, lambda data: data.replace(b'"content_hash": "', b'"content_hash": "0'))
    assert (done.code, runs) == (2, [])
    assert "expected archives of one plan with the same settings, found 2" in done.output

    (tmp_path / "x.jsonl").write_text("{}\n")
    done, _ = merged(tmp_path, tmp_path / "x.jsonl")
    assert done.code == 2
    assert "expected a journal file, found no session in it" in done.output
    assert "Traceback" not in done.output


def test_machines_may_keep_the_programs_in_different_places(carried, tmp_path):
    """A group's hash knows the paths of its machine, and every machine's run.json has those of the whole plan."""

    def move(line):
        if line["event"] == "run":
            line["record"]["plan"]["asked"]["group01"]["content_hash"] = "of another folder"

    _, (directory,) = with_second(carried, tmp_path, lines_changed(move))
    assert [row["group"] for row in summary(directory)] == ["group01", "group02"]


def test_groups_on_different_kinds_of_gpus_become_runs_of_their_own(carried, tmp_path):
    def rename(line):
        if line["event"] == "group":
            line["record"]["device_name"] = "NVIDIA A100"

    _, runs = with_second(carried, tmp_path, lines_changed(rename))
    assert [[row["group"] for row in summary(run)] for run in runs] == [["group01"], ["group02"]]


def test_a_session_that_is_repeated_into_its_file_goes_on_after_the_torn_line(carried, tmp_path):
    """As when a job is put back into its queue."""
    run, journal = carried
    file = tmp_path / "again.jsonl"
    file.write_text(json.dumps(lines_of(journal)[0]) + '\n{"event": "fi')
    copy = Path(shutil.copytree(run.run, tmp_path / "run"))
    reported = (copy / "journal.jsonl").read_bytes()
    (copy / "journal.jsonl").unlink()
    writer = archive.Writer(file, RunDirectory(copy))
    (copy / "journal.jsonl").write_bytes(reported)
    writer.group("stand_in_parallel_001")
    writer.end()
    found, faults = archive.read(file)
    assert len(found) == 2
    assert len(faults) == 1
    assert "line 2 is damaged" in faults[0]
    assert set(found[1].groups) == {"group01", "group02", "group03", "group04"}


def test_no_file_is_written_outside_of_the_run(carried, tmp_path):
    _, journal = carried
    file, paths = tmp_path / "evil.jsonl", ("../outside", "/etc/passwd", "a/../../b", ".hidden/x")
    evil = "".join(json.dumps({"event": "file", "path": path, "gzip": ""}) + "\n" for path in paths)
    file.write_text(journal.read_text() + evil)
    done, (directory,) = merged(tmp_path / "merged", file)
    assert done.output.count("expected a path inside a run directory") == len(paths)
    assert not (directory.parent / "outside").exists()
