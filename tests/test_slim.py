"""What readers of a run keep of a record, and what they read again."""

import json

import pytest
from builders import evidence
from groups import group, training

from colocate.results import read_run
from colocate.results.layout import RunDirectory
from colocate.results.record import write_record
from colocate.results.slim import slim


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "run_20261124_053000")
    directory = run.group("mnist", 1, parallel=True).create()
    write_record(directory, group(training("mnist"), training("resnet20")), evidence(group="group01"), [], run.name)
    return run


def test_a_slim_record_lacks_the_bulk_and_nothing_else(run):
    document = json.loads(next(run.groups()).experiment.read_text())
    lighter = slim(document)
    assert document["evidence"]["foreground"]["progress_events"]
    assert "progress_events" not in lighter["evidence"]["foreground"]
    assert lighter["evidence"]["foreground"]["name"] == document["evidence"]["foreground"]["name"]
    assert lighter["evidence"]["baseline_bytes"] == document["evidence"]["baseline_bytes"]
    assert lighter["group"] == document["group"]


def test_equal_parts_of_records_are_kept_once(run):
    text = next(run.groups()).experiment.read_text()
    first, second = slim(json.loads(text)), slim(json.loads(text))
    assert first["evidence"]["device"] is second["evidence"]["device"]


def test_a_row_reads_its_whole_record_again(run):
    (row,) = read_run(run.path).rows
    assert not row.member("foreground")["progress_events"]
    assert row.whole().member("foreground")["progress_events"]
    assert row.whole().record == row.record
