import json
from pathlib import Path

import pytest
from builders import evidence
from groups import group, training

from colocate.cli.main import main
from colocate.device.base import Vitals
from colocate.errors import ColocateError
from colocate.results.layout import GroupDirectory, RunDirectory
from colocate.results.record import read_attempt, read_evidence, write_record

GROUP = group(training("examples_mnist"), training("resnet20"))


@pytest.fixture
def directory(tmp_path: Path) -> GroupDirectory:
    return RunDirectory(tmp_path).group("examples_mnist", 1, parallel=True).create()


def test_a_record_read_back_is_the_one_written(directory: GroupDirectory) -> None:
    verdict = write_record(directory, GROUP, evidence(), [], "run_1")

    assert (read_evidence(directory), read_attempt(directory).verdict) == (evidence(), verdict)


def test_the_keys_of_the_study_are_there(directory: GroupDirectory) -> None:
    vitals = [(float(n), 1e9 + n, Vitals(power_mw=100_000 * n, temperature_c=60 + n)) for n in (1, 2)]
    write_record(directory, GROUP, evidence(), vitals, "run_1")
    document = json.loads(directory.experiment.read_text())

    assert document["experiment_id"] == "examples_mnist_parallel_001"
    assert document["mode"] == "parallel"
    foreground = document["foreground"]
    assert foreground["performance_metrics"] == {"accuracy": 0.9}
    assert (foreground["training_success"], foreground["duration_seconds"]) == (True, 13.0)
    assert foreground["energy_metrics"]["gpu_power_avg_watts"] == 150
    assert foreground["energy_metrics"]["gpu_util_max_percent"] is None
    assert document["background"]["log_directory"] == "background_logs"


def test_a_record_of_another_schema_is_told_by_its_place(directory: GroupDirectory) -> None:
    write_record(directory, GROUP, evidence(), [], "run_1")
    document = json.loads(directory.experiment.read_text())
    del document["evidence"]["trace"]
    directory.experiment.write_text(json.dumps(document))

    with pytest.raises(ColocateError, match="expected a record of this version"):
        read_evidence(directory)


def test_verify_agrees_with_what_is_on_disk(directory: GroupDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(directory, GROUP, evidence(), [], "run_1")

    assert main(["verify", str(directory.path.parent)]) == 0
    assert "group01 (examples_mnist_parallel_001): agrees, FEASIBLE (measured)" in capsys.readouterr().out


def test_verify_finds_a_verdict_that_does_not_follow(directory: GroupDirectory) -> None:
    write_record(directory, GROUP, evidence(background=None, returned_to_baseline=False), [], "run_1")
    directory.verdict.write_text(directory.verdict.read_text().replace("INCONCLUSIVE", "FEASIBLE"))

    assert main(["verify", str(directory.path)]) == 1


def test_verify_of_a_folder_without_a_record_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tmp_path)]) == 2
    assert "expected a run directory or the folder of a group" in capsys.readouterr().err
