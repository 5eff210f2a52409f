"""`colocate.advice.proposals`: what could be tried where a group does not fit, in order of cost."""

import importlib
from dataclasses import replace
from pathlib import Path

import builders
import pytest
from groups import group, training

from colocate.advice.proposals import Kind, Proposal, halvings, proposals
from colocate.plan.catalog import Catalog, load_catalog
from colocate.plan.overrides import Override, varied
from colocate.plan.plan import Group, load_plan
from colocate.plan.roles import Role
from colocate.units import MIB
from colocate.verdict.evidence import Evidence

SETTINGS = Path(__file__).parents[1] / "settings"


def catalog() -> Catalog:
    return load_catalog(SETTINGS / "models.json")


def of_the_plan(name: str) -> Group:
    (found,) = (one for one in load_plan(SETTINGS / "parallel_feasibility_test.json").groups if one.id == name)
    return found


def demand(foreground_mib: float, background_mib: float) -> Evidence:
    return builders.predicted_evidence(foreground_mib, background_mib)


def kinds(found: list[Proposal]) -> list[tuple[Kind, Role | None]]:
    return [(one.kind, one.role) for one in found]


def test_the_infeasible_group_of_the_plan_gets_proposals_in_order_of_cost() -> None:
    found = proposals(of_the_plan("group09"), demand(9500, 600), catalog())
    assert kinds(found) == [(kind, "foreground") for kind in (Kind.BATCH, Kind.CHECKPOINTING, Kind.MODEL)]
    batch, _, model = found
    assert [dict(step.override.hyperparameters) for step in batch.steps] == [
        {"batch_size": 16, "accumulate": 2},
        {"batch_size": 8, "accumulate": 4},
        {"batch_size": 4, "accumulate": 8},
        {"batch_size": 2, "accumulate": 16},
        {"batch_size": 1, "accumulate": 32},
    ]
    assert batch.text() == (
        'Person_reID_baseline_pytorch_pcb: "batch_size": 16, "accumulate": 2 '
        "keeps the effective batch of 32, and takes longer"
    )
    assert [step.override.model for step in model.steps] == ["densenet121", "hrnet18"]


def test_every_step_can_be_made(subtests: pytest.Subtests) -> None:
    """What is proposed is a group that the catalog knows, with another command line."""
    for given in load_plan(SETTINGS / "parallel_feasibility_test.json").groups:
        if given.background is None or not given.background.uses_gpu or not given.foreground.uses_gpu:
            continue
        with subtests.test(given.id):
            found = proposals(given, demand(4000, 3900), catalog())
            assert {one.role for one in found} == {"foreground", "background"}
            for step in (step for one in found for step in one.steps):
                assert varied(given, step.override, catalog()).content_hash != given.content_hash


def test_a_known_size_rules_a_model_out_and_puts_the_largest_smaller_one_first() -> None:
    known = {
        ("Person_reID_baseline_pytorch", "densenet121"): 12000 * MIB,
        ("Person_reID_baseline_pytorch", "hrnet18"): MIB,
    }
    *_, model = proposals(of_the_plan("group09"), demand(9500, 600), catalog(), known)
    assert [step.override.model for step in model.steps] == ["hrnet18"]
    assert "it needed 1 MiB in this run" in model.text()


def test_another_model_loses_the_hyperparameters_that_it_does_not_know() -> None:
    given = of_the_plan("group12")
    assert given.background is not None
    heavy = varied(given, Override("background", {"fp16": "off", "attention": "eager"}), catalog())
    found = proposals(heavy, demand(1500, 6800), catalog())
    assert kinds(found)[:4] == [
        (Kind.BATCH, "background"),
        (Kind.BATCH, "foreground"),
        (Kind.ATTENTION, "background"),
        (Kind.PRECISION, "background"),
    ]
    (model,) = (one for one in found if one.kind is Kind.MODEL and one.role == "background")
    assert model.text() == 'VulBERTa_mlp: "model": "cnn" in its place, without attention, fp16'


def test_only_what_may_help_is_proposed() -> None:
    twelfth = of_the_plan("group12")
    found = proposals(twelfth, demand(1000, 9500), catalog())
    assert not {Kind.ATTENTION, Kind.PRECISION} & {one.kind for one in found}, "what is set already"
    found = proposals(twelfth, demand(9000, 3000), catalog())
    assert {one.role for one in found} == {"foreground"}, "without the other it is too much already"
    first, *_ = proposals(twelfth, demand(3400, 3300), catalog())
    assert (first.kind, first.steps) == (Kind.MEASURE, ()), "an undecided prediction is to be measured first"
    found = proposals(group(training("own"), training("other")), demand(9500, 500), None)
    assert [(one.kind, one.steps, one.text()) for one in found] == [
        (Kind.BATCH, (), "own: a smaller batch with gradient accumulation, in its own command")
    ]


def test_fragments_ask_for_expandable_segments_beside_what_is_set() -> None:
    kept = builders.simulated(7000, max_allocated_bytes=6000 * MIB)
    evidence = replace(demand(9500, 500), foreground=builders.foreground(allocators=(kept,)))
    own = training("own", env={"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128"})
    found = proposals(group(own, training("other")), evidence, None)
    (segments,) = (one for one in found if one.kind is Kind.SEGMENTS)
    (step,) = segments.steps
    assert step.override.env == {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128,expandable_segments:True"}
    assert "kept 1000 MiB beyond" in segments.text()


def test_options_of_a_command_of_ones_own_are_read() -> None:
    own = training("own", "--batch-size", "10", "--gradient_accumulation_steps=2")
    batch, *_ = proposals(group(own, training("other")), demand(9500, 500), None)
    assert [dict(step.override.options) for step in batch.steps] == [
        {"--batch-size": 5, "--gradient_accumulation_steps": 4},
        {"--batch-size": 2, "--gradient_accumulation_steps": 10},
        {"--batch-size": 1, "--gradient_accumulation_steps": 20},
    ]
    changed = varied(group(own, training("other")), batch.steps[0].override, None)
    assert changed.foreground.argv[-3:] == ("--batch-size", "5", "--gradient_accumulation_steps=4")


def test_halvings_stay_near_divisors_of_the_effective_batch_and_say_where_they_do_not_divide_it() -> None:
    found = {batch: list(halvings(batch, batch)) for batch in (24, 25, 30)}
    assert found == {24: [12, 6, 3, 1], 25: [12, 5, 2, 1], 30: [15, 6, 3, 1]}
    assert list(halvings(1, 8)) == []
    own = training("own", "--bs", "25", "--accumulate", "1")
    batch, *_ = proposals(group(own, None), replace(demand(9500, 1), background=None), None)
    assert "has an effective batch of 24 in place of 25" in batch.text()


@pytest.mark.slow
def test_the_catalog_knows_what_our_own_programs_take_by_themselves(subtests: pytest.Subtests) -> None:
    checked = 0
    for repository, spec in catalog().repositories.items():
        for model in spec.models:
            module = importlib.import_module(spec.command["*"][-1].replace("{model}", model).replace("-", "_"))
            taken = module.arguments([])
            for name, kind in catalog().supported(repository, model).items():
                written = kind.of_program(model)
                if written is not None and kind.flag is not None:
                    with subtests.test(f"{repository} {model} {name}"):
                        assert getattr(taken, kind.flag.strip("-").replace("-", "_")) == written
                    checked += 1
    assert checked == 28
