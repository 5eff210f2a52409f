"""The table of known cards and what --card means."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from colocate.device.acquire import Card, fresh, opened
from colocate.errors import PlanError
from colocate.plan.gpu_models import SCHEMA, TABLE, CardsFile, card_called, known_card, schema, table
from colocate.probe.virtual_gpu.card import CONTEXT_BYTES, CONTEXT_RANGE_BYTES, VirtualCard
from colocate.probe.virtual_gpu.operators import matrix_workspace_bytes
from colocate.units import GIB, MIB


def test_the_published_schema_is_that_of_the_code() -> None:
    """If this fails: python -m colocate.plan.gpu_models --write-schema."""
    assert (TABLE.parent / SCHEMA).read_text(encoding="utf-8") == schema()
    assert json.loads(TABLE.read_text(encoding="utf-8"))["$schema"] == SCHEMA


def test_every_figure_of_the_table_has_its_source() -> None:
    cards = table()

    assert len({row.name for row in cards.cards}) == len(cards.cards)
    for row in (cards.any_size, *cards.cards):
        assert all(len(text) >= len("nominal") for text in row.sources.values())


def test_workspaces_of_the_table_are_those_of_the_probe() -> None:
    """The probe has the same rule for cards that no table describes."""
    for row in table().cards:
        assert row.cublas_workspace == matrix_workspace_bytes(int(row.compute_capability.split(".")[0])), row.name


def test_a_card_of_any_size_has_the_figures_that_the_probe_assumes_by_itself() -> None:
    card = known_card("8GB")

    assert (card.name, card.total_bytes) == ("virtual 8 GB card", 8 * GIB)
    assert (card.context_bytes, card.context_range_bytes) == (CONTEXT_BYTES, CONTEXT_RANGE_BYTES)
    assert card.source("baseline").startswith("study's records")


@pytest.mark.parametrize("text", ["RTX 3080", "rtx3080", "NVIDIA GeForce RTX 3080"])
def test_a_name_may_leave_out_what_people_leave_out(text: str) -> None:
    card = known_card(text)

    assert card.name == "NVIDIA GeForce RTX 3080 (virtual)"
    assert card.total_bytes == 10 * GIB


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("RTX", "one name: 'NVIDIA GeForce RTX 3080', 'NVIDIA GeForce RTX 3090'"),
        ("0GB", "expected a size above zero, got '0GB'"),
        ("Voodoo 2", "one of the table's names, got 'Voodoo 2'"),
        ("", "one of the table's names, got ''"),
    ],
)
def test_what_is_no_card_is_refused_with_the_names_that_are(text: str, told: str) -> None:
    with pytest.raises(PlanError) as error:
        known_card(text)

    assert told in str(error.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"total": "8 bananas"}, "$.cards[0].total: expected a size such as"),
        ({"compute_capability": "new"}, "$.cards[0].compute_capability: expected a compute capability such as '8.6'"),
        ({"sources": {}}, "$.cards[0]: expected sources for baseline, compute_capability, context, cublas_workspace"),
        ({"context": {"expected": "3MB", "low": "4MB", "high": "5MB"}}, "$.cards[0].context: expected low, expected"),
        ({"contekst": 1}, "$.cards[0].contekst: "),
    ],
)
def test_mistakes_of_a_table_are_told_with_their_places(tmp_path: Path, change: dict, told: str) -> None:
    document = json.loads(TABLE.read_text(encoding="utf-8"))
    document["cards"][0].update(change)
    path = tmp_path / "cards.json"
    path.write_text(json.dumps(document), encoding="utf-8")

    with pytest.raises(PlanError) as error:
        table(path)

    assert told in str(error.value)


def test_without_the_settings_folder_a_size_still_means_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel brings the package alone."""
    with_table = known_card("8GB")
    monkeypatch.setattr("colocate.plan.gpu_models.TABLE", Path("/nowhere/cards.json"))
    monkeypatch.setattr("colocate.plan.gpu_models.table", lambda: table.__wrapped__(Path("/nowhere/cards.json")))

    bare = known_card("8GB")

    assert replace(bare, sources=()) == replace(with_table, sources=())
    with pytest.raises(PlanError):
        known_card("RTX 3080")


def test_a_table_needs_its_parts() -> None:
    assert set(CardsFile.known_keys()) == {"$schema", "description", "any_size", "cards"}


def test_an_opened_virtual_card_has_the_figures_of_its_row(tmp_path: Path) -> None:
    known = known_card("RTX 5070")
    card = Card("virtual", total_bytes=known.total_bytes, name=known.name)

    with opened(card, tmp_path / "card.json", holder="group01") as device:
        state = VirtualCard.open(tmp_path / "card.json")
        again = fresh(device, tmp_path / "again.json")

    assert device.info.name == again.info.name == "NVIDIA GeForce RTX 5070 (virtual)"
    assert (state.capability, state.workspace_bytes) == ((12, 0), 32 * MIB)
    assert state.context_range_bytes == known.context_range_bytes
    assert device.memory().used_bytes == known.baseline_bytes


def test_a_card_without_a_name_is_one_of_any_size() -> None:
    assert card_called("", 6 * GIB) == known_card("6GB")


def test_a_gpu_is_rehearsed_as_its_product_and_else_by_its_size() -> None:
    """`colocate fit` used to start on a GPU from a prediction for the plan's card."""
    product = "NVIDIA GeForce RTX 3080"
    whole = Card("nvidia", "GPU-1", product=product, memory_bytes=10 * GIB)
    assert whole.figures == known_card("RTX 3080")
    assert replace(whole, total_bytes=8 * GIB).figures == known_card("8GB"), "a part of it is no product"
    assert replace(whole, product="Never Heard 9", memory_bytes=24 * GIB).figures == known_card("24GB")
