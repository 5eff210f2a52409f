"""What views keep of a damaged record, and what they leave for when it is opened."""

import json
from dataclasses import dataclass, field

import pytest
from records import finish, run_in

from colocate.results import read_run, reader, whole
from colocate.results.lenient import read_leniently


@dataclass(frozen=True)
class Part:
    name: str
    size: int = 7


@dataclass(frozen=True)
class Whole:
    part: Part
    count: int
    ratio: float = 0.5
    parts: tuple[Part, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    other: Part | None = None


def test_what_is_not_there_has_its_default_and_what_does_not_fit_is_none():
    assert read_leniently({"part": {"name": "a"}, "count": 3}, Whole) == Whole(Part("a"), 3)
    found = read_leniently({"part": {"name": 4, "size": "x"}, "count": True, "ratio": "0.5", "parts": {}}, Whole)
    assert (found.part.name, found.part.size, found.count, found.ratio, found.parts) == (None, None, None, None, ())
    assert read_leniently(None, Whole).part == Part(None, 7)


def test_parts_of_lists_and_tables_that_do_not_fit_are_left_out():
    document = {"parts": [{"name": "a"}, {"size": 3}, "x", {"name": "b", "size": 1.5}], "sizes": {"a": 1, "b": "x"}}
    found = read_leniently({**document, "other": {"size": 3}}, Whole)
    assert (found.parts, found.sizes, found.other) == ((Part("a"),), {"a": 1}, None)


@pytest.fixture
def run(tmp_path):
    run = run_in(tmp_path)
    finish(run)
    return run


def test_a_large_run_is_read_without_the_bulk_of_its_records(run, monkeypatch):
    (complete,) = read_run(run.path).results
    assert complete.deciding == whole(complete.deciding)
    monkeypatch.setattr(reader, "MOST_WHOLE", 0)
    (result,) = read_run(run.path).results
    assert not result.evidence.foreground.progress_events
    assert whole(result.deciding) == complete.deciding


def test_a_damaged_part_of_the_evidence_costs_that_part(run):
    (directory,) = run.groups()
    document = json.loads(directory.experiment.read_text())
    document["evidence"]["foreground"]["allocators"] = [{"pid": "x"}]
    document["evidence"]["baseline_bytes"] = "much"
    directory.experiment.write_text(json.dumps(document))
    (result,) = read_run(run.path).results
    assert (result.outcome, result.attempts) == ("FEASIBLE", ())
    assert (result.evidence.foreground.allocators, result.evidence.baseline_bytes) == ((), None)
    assert result.evidence.foreground.name == "examples_mnist"
