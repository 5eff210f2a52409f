"""The table of known GPUs and what --gpu means."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from colocate.cli.main import main
from colocate.device.acquire import FoundGpu, fresh, opened
from colocate.errors import PlanError
from colocate.plan.gpu_models import SCHEMA, TABLE, gpu_model, model_called, own_gpus, schema, table
from colocate.probe.virtual_gpu.operators import matrix_workspace_bytes
from colocate.probe.virtual_gpu.state import CONTEXT_BYTES, CONTEXT_RANGE_BYTES, VirtualGpu
from colocate.units import GIB, MIB


def test_the_published_schema_is_that_of_the_code() -> None:
    """If this fails: python -m colocate.plan."""
    assert (TABLE.parent / SCHEMA).read_text(encoding="utf-8") == schema()
    assert json.loads(TABLE.read_text(encoding="utf-8"))["$schema"] == SCHEMA


def test_every_figure_of_the_table_has_its_source() -> None:
    gpus = table()

    assert len({row.name for row in gpus.gpus}) == len(gpus.gpus)
    for row in (gpus.any_size, *gpus.gpus):
        assert all(len(text) >= len("nominal") for text in row.sources.values())


def test_workspaces_of_the_table_are_those_of_the_probe() -> None:
    """The probe has the same rule for GPUs that no table describes."""
    for row in table().gpus:
        assert row.cublas_workspace == matrix_workspace_bytes(int(row.compute_capability.split(".")[0])), row.name


def test_a_gpu_of_any_size_has_the_figures_that_the_probe_assumes_by_itself() -> None:
    gpu = gpu_model("8GB")

    assert (gpu.name, gpu.total_bytes) == ("virtual 8 GB GPU", 8 * GIB)
    assert (gpu.context_bytes, gpu.context_range_bytes) == (CONTEXT_BYTES, CONTEXT_RANGE_BYTES)
    assert gpu.source("baseline").startswith("study's records")


def test_a_name_may_leave_out_what_people_leave_out_and_none_is_a_gpu_of_any_size() -> None:
    for text in ("RTX 3080", "rtx3080", "NVIDIA GeForce RTX 3080"):
        gpu = gpu_model(text)
        assert (gpu.name, gpu.total_bytes) == ("NVIDIA GeForce RTX 3080 (virtual)", 10 * GIB)
    assert model_called("", 6 * GIB) == gpu_model("6GB")


def test_what_is_no_gpu_is_refused_with_the_names_that_are() -> None:
    for text, said in {
        "RTX": "one name: 'NVIDIA GeForce RTX 3060', 'NVIDIA GeForce RTX 3070'",
        "0GB": "expected a size above zero, got '0GB'",
        "Voodoo 2": "one of the table's names, got 'Voodoo 2'",
        "": "one of the table's names, got ''",
    }.items():
        with pytest.raises(PlanError, match=re.escape(said)):
            gpu_model(text)


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        ({"total": "8 bananas"}, "$.gpus[0].total: expected a size such as"),
        ({"compute_capability": "new"}, "$.gpus[0].compute_capability: expected a compute capability such as '8.6'"),
        ({"sources": {}}, "$.gpus[0]: expected sources for baseline, compute_capability, context, cublas_workspace"),
        ({"context": {"expected": "3MB", "low": "4MB", "high": "5MB"}}, "$.gpus[0].context: expected low, expected"),
        ({"contekst": 1}, "$.gpus[0].contekst: "),
    ],
)
def test_mistakes_of_a_table_are_told_with_their_places(tmp_path: Path, change: dict, reported: str) -> None:
    document = json.loads(TABLE.read_text(encoding="utf-8"))
    document["gpus"][0].update(change)
    path = tmp_path / "gpu_models.json"
    path.write_text(json.dumps(document), encoding="utf-8")

    with pytest.raises(PlanError) as error:
        table(path)

    assert reported in str(error.value)


def test_without_the_settings_folder_a_size_still_means_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel brings the package alone."""
    with_table = gpu_model("8GB")
    monkeypatch.setattr("colocate.plan.gpu_models.TABLE", Path("/nowhere/gpu_models.json"))
    monkeypatch.setattr("colocate.plan.gpu_models.table", lambda: table.__wrapped__(Path("/nowhere/gpu_models.json")))

    bare = gpu_model("8GB")

    assert replace(bare, sources=()) == replace(with_table, sources=())
    with pytest.raises(PlanError):
        gpu_model("RTX 3080")


def test_an_opened_virtual_gpu_has_the_figures_of_its_row(tmp_path: Path) -> None:
    known = gpu_model("RTX 5070")
    gpu = FoundGpu("virtual", total_bytes=known.total_bytes, name=known.name)

    with opened(gpu, tmp_path / "GPU.json", holder="group01") as device:
        state = VirtualGpu.open(tmp_path / "GPU.json")
        again = fresh(device, tmp_path / "again.json")

    assert device.info.name == again.info.name == "NVIDIA GeForce RTX 5070 (virtual)"
    assert (state.capability, state.workspace_bytes) == ((12, 0), 32 * MIB)
    assert state.context_range_bytes == known.context_range_bytes
    assert device.memory().used_bytes == known.baseline_bytes


def test_a_gpu_is_dry_run_as_its_product_and_else_by_its_size() -> None:
    """`colocate fit` used to start on a GPU from a prediction for the plan's GPU."""
    product = "NVIDIA GeForce RTX 3080"
    whole = FoundGpu("nvidia", "GPU-1", product=product, memory_bytes=10 * GIB)
    assert whole.figures == gpu_model("RTX 3080")
    assert replace(whole, total_bytes=8 * GIB).figures == gpu_model("8GB"), "a part of it is no product"
    assert replace(whole, product="Never Heard 9", memory_bytes=24 * GIB).figures == gpu_model("24GB")


def test_cudnn_makes_a_context_larger_where_that_is_known() -> None:
    split, whole = gpu_model("A100 40GB"), gpu_model("RTX 3080")

    assert (split.context_bytes, split.cudnn_context_bytes) == (481 * MIB, 501 * MIB)
    assert split.cudnn_context_range_bytes[1] > split.context_range_bytes[1]
    assert whole.cudnn_context_range_bytes == whole.context_range_bytes


@pytest.fixture
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    own_gpus.cache_clear()
    return tmp_path / "colocate" / "gpu_models.json"


def test_one_reading_of_a_context_counts_for_later_predictions(own_settings: Path, capsys) -> None:
    before = gpu_model("RTX 3080")
    assert main(["doctor", "--gpu=3080", "--context=320MB"]) == 0

    after = gpu_model("RTX 3080")
    assert capsys.readouterr().out == f"{own_settings}: NVIDIA GeForce RTX 3080 has a context of 318 MiB\n"
    assert (after.context_bytes, after.context_range_bytes) == (318 * MIB, (288 * MIB, 348 * MIB))
    assert (after.cudnn_context_bytes, after.cudnn_context_range_bytes) == (406 * MIB, (288 * MIB, 738 * MIB))
    assert "320 MiB that the user read" in after.source("context")
    assert model_called(after.name, after.total_bytes) == after
    assert (after.capability, after.baseline_bytes) == (before.capability, before.baseline_bytes)


def test_a_second_reading_takes_the_place_of_the_first(own_settings: Path) -> None:
    for size in ("320MB", "330MB"):
        assert main(["doctor", "--gpu=3080", f"--context={size}"]) == 0
    assert main(["doctor", "--gpu=A100", "--context=483MB"]) == 0

    names = [row["name"] for row in json.loads(own_settings.read_text())["gpus"]]
    assert names == ["NVIDIA GeForce RTX 3080", "NVIDIA A100 40GB"]
    assert gpu_model("RTX 3080").context_bytes == 328 * MIB
    assert gpu_model("A100").cudnn_context_bytes == 501 * MIB


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["--context=320MB"], "expected --gpu and --context together"),
        (["--gpu=Voodoo 2", "--context=320MB"], "one of the table's names, got 'Voodoo 2'"),
        (["--gpu=RTX 3080", "--context=20GB"], "the memory of NVIDIA GeForce RTX 3080, got 20480 MiB"),
    ],
)
def test_a_reading_that_means_nothing_is_refused(own_settings: Path, capsys, arguments: list, reported: str) -> None:
    assert main(["doctor", *arguments]) == 2
    assert reported in capsys.readouterr().err
    assert not own_settings.exists()


def test_mistakes_of_the_users_own_table_are_told(own_settings: Path) -> None:
    own_settings.parent.mkdir()
    own_settings.write_text('{"gpus": [{"name": "Voodoo 2"}]}')
    with pytest.raises(PlanError, match=r"gpus\[0\]"):
        gpu_model("Voodoo 2")
