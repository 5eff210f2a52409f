"""``colocate pairs``: the plan of all ordered pairs, from what each training takes alone."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from sessions import ROOT
from sessions import run as run_session

import colocate.advice.solo_profiles
from colocate.advice.next_plan import LEFT_OUT
from colocate.advice.pairing import OrderedPair, ordered_pairs, short_names, tier_of
from colocate.advice.solo_profiles import SoloProfile
from colocate.cli.main import main
from colocate.harness.simulation import NOTHING, SimulatedRun
from colocate.plan.catalog import Training
from colocate.plan.plan import load_plan
from colocate.units import MIB
from colocate.verdict.predicted_peak import PeakRange

LIMIT = 7500 * MIB


def solo(name: str, peak_mib: int | None, *, least_mib: int | None = None, uses_gpu: bool = True) -> SoloProfile:
    training = Training(name, ("train", name), Path("/"), uses_gpu=uses_gpu)
    if peak_mib is None:
        return SoloProfile(training, None, "cannot be emulated")
    size = peak_mib * MIB
    least = size if least_mib is None else least_mib * MIB
    return SoloProfile(training, PeakRange(size, size, size), least_bytes=least)


def pairs_of(*solos: SoloProfile, **settings: Any) -> list[OrderedPair]:
    return list(ordered_pairs(solos, 0, LIMIT, **settings))


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_the_tiers_are_those_of_the_studys_groups() -> None:
    plan = load_plan(ROOT / "settings/parallel_feasibility_test.json")
    assert {group.id: tier_of(group.expected_bytes, LIMIT) for group in plan.groups if group.expected_bytes} == {
        group.id: group.tier for group in plan.groups
    }


def test_every_training_is_beside_every_other_in_both_roles_unless_both_need_no_gpu() -> None:
    found = pairs_of(solo("a", 100), solo("b", 200), solo("c", 300))
    assert [one.id for one in found] == ["a__b", "a__c", "b__a", "b__c", "c__a", "c__b"]
    assert [one.id for one in pairs_of(solo("a", 100), with_itself=True)] == ["a__a"]
    found = pairs_of(solo("a", 0, uses_gpu=False), solo("b", 0, uses_gpu=False), solo("c", 300))
    assert [one.id for one in found] == ["a__c", "b__c", "c__a", "c__b"]


def test_a_pair_cannot_fit_when_its_floor_does_not_and_a_peak_above_the_limit_is_no_reason() -> None:
    (tight, _) = pairs_of(solo("a", 4000, least_mib=3000), solo("b", 4000, least_mib=3000))
    (over, _) = pairs_of(solo("a", 4000), solo("b", 3500))
    (unknown, _) = pairs_of(solo("a", None), solo("b", 100))
    assert (tight.answer, tight.impossible) == ("does not fit", False)
    assert (over.answer, over.impossible) == ("does not fit", True)
    assert (unknown.peak, unknown.tier, unknown.answer, unknown.impossible) == (None, None, "not predicted", False)
    assert pairs_of(solo("a", None), solo("b", 8000))[0].impossible


def test_names_are_told_apart_and_stay_what_they_are_when_others_are_added() -> None:
    long = "Person_reID_baseline_pytorch_with_a_very_long_name_indeed"
    found = short_names([solo(name, 1) for name in ("A b", "a_b", "a-b", "a-b-2", "50", long, f"{long}_2")])
    assert found[:5] == ["a-b", "a_b", "a-b-2", "a-b-2-2", "t50"]
    assert len(set(found)) == len(found)
    assert all(len(name) <= 49 and "__" not in name for name in found)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def catalog(tmp_path: Path, dry_runs: None) -> Path:
    """Two repositories whose programs are there; the number in a model's name is what it takes, in MiB."""
    (tmp_path / "train.py").touch()
    command = ["{python}", "train.py", "{model}"]
    flag = {"epochs": {"flag": "--epochs", "type": "int"}}
    document = {
        "root": ".",
        "models": {
            "one": {"path": ".", "models": ["m900", "m2000", "m4200"], "supported_hyperparams": flag},
            "two": {"path": ".", "models": ["m900", "m5000", "fails"], "env": {"ONE": "1"}},
        },
    }
    for repository in document["models"].values():
        repository["command"] = command
    path = tmp_path / "models.json"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def dry_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program takes the MiB that the number in its model's name says, and at the least 90 % of that."""

    def simulate(programs: Any, gpu: Any, **settings: Any) -> list[SimulatedRun]:
        found = []
        for program in programs:
            word = next(word for word in program.argv if word.startswith("m") or word == "fails")
            bare = SimulatedRun(program.name, program.argv, 1.0)
            if word == "fails":
                found.append(SimulatedRun(program.name, program.argv, 1.0, failure="cannot be emulated"))
                continue
            size = int(word[1:].split("_")[0]) * MIB
            peak = PeakRange(size, size, size + 100 * MIB)
            floor = size * 9 // 10
            found.append(SimulatedRun(bare.name, bare.argv, 1.0, peak=peak, parts=NOTHING, floor_bytes=floor))
        return found

    monkeypatch.setattr(colocate.advice.solo_profiles, "simulate", simulate)


def test_the_plan_has_all_pairs_with_what_is_predicted_of_them(catalog: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "plans/pairs.json"
    assert main(["pairs", f"--catalog={catalog}", f"--out={out}"]) == 0
    said = capsys.readouterr().out
    document, plan = json.loads(out.read_text()), load_plan(out)

    assert "30 ordered pairs" in said
    assert "10 pairs of the plan are not predicted" in said
    assert "not run, 2 pairs: the least that both need is not below 7500 MiB\n  one_m4200__two_m5000" in said
    assert f"{len(plan.groups)} groups, 2 not run" in said
    assert all(len(line) <= 80 for line in said.splitlines() if not line.startswith(("plan:", "run:")))
    assert [entry["id"] for entry in document["not_run"]] == ["one_m4200__two_m5000", "two_m5000__one_m4200"]
    assert "needs at least 8512 MiB" in document["not_run"][0]["note"]
    assert len(plan.groups) == 28
    small = plan.by_id["one_m900__two_m900"]
    assert small.expected_bytes == (900 + 900 + 232) * MIB
    assert small.tier == "low"
    assert small.foreground.argv[-2:] == ("--epochs", "1")
    assert small.background is not None
    assert small.background.env == {"ONE": "1"}
    unknown = plan.by_id["two_fails__one_m900"]
    assert (unknown.expected_bytes, unknown.tier) == (None, None)
    assert unknown.note == "not predicted: two_fails cannot be emulated"

    assert main(["pairs", f"--catalog={catalog}", "--all", f"--out={out}"]) == 0
    group = load_plan(out).by_id["one_m4200__two_m5000"]
    assert (group.tier, group.expected_bytes) == ("high", None), "left out is nothing, even what cannot fit"
    assert "not_run" not in json.loads(out.read_text())
    assert "not_run" in LEFT_OUT, "of a plan that follows"

    assert main(["pairs", f"--catalog={catalog}", "--gpu=24GB", f"--out={out}"]) == 0
    plan = load_plan(out)
    assert plan.limits.peak_bytes == plan.limits.gpu_bytes == 24 * 1024 * MIB
    assert plan.by_id["one_m4200__two_m900"].tier == "ultra-low", "the same shares of another GPU"
    assert plan.by_id["one_m4200__two_m5000"].tier == "low"

    out.unlink()
    assert main(["pairs", f"--catalog={catalog}", "--models=m4200,m5000", f"--out={out}"]) == 1
    assert "no plan is written" in capsys.readouterr().out
    assert not out.exists()


def test_the_same_trainings_give_the_same_file_and_fewer_of_them_the_same_groups(catalog: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    for out in outs[:2]:
        assert main(["pairs", f"--catalog={catalog}", f"--out={out}"]) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert main(["pairs", f"--catalog={catalog}", "--models=one/m900,m2000,two/m900", f"--out={outs[2]}"]) == 0
    before, after = load_plan(outs[0]), load_plan(outs[2])
    assert len(after.groups) == 6
    assert all(before.by_id[one.id].content_hash == one.content_hash for one in after.groups)


def test_the_trainings_of_a_plan_keep_their_settings_limits_and_environment(catalog: Path, tmp_path: Path) -> None:
    """Also from another folder, and those with a command of their own."""
    own = {"command": ["{python}", "train.py", "m1000"], "name": "mine", "repeat_args": ["--repeat"]}
    first = {"repo": "one", "model": "m900", "mode": "default", "hyperparameters": {"epochs": 3}, "env": {"X": "1"}}
    document = {"limits": {"peak": "3000MB", "settle_s": 5}, "experiments": [{"foreground": first, "background": own}]}
    (tmp_path / "plan.json").write_text(json.dumps(document))
    source = load_plan(tmp_path / "plan.json").groups[0]

    assert main(["pairs", f"--from={tmp_path / 'plan.json'}", f"--out={tmp_path / 'new/pairs.json'}"]) == 0
    group = load_plan(tmp_path / "new/pairs.json").by_id["one_m900__mine"]
    assert (group.foreground, group.background) == (source.foreground, source.background)
    assert group.limits == source.limits
    assert (
        main(["pairs", f"--from={tmp_path / 'plan.json'}", "--models=mine,m900", f"--out={tmp_path / 'x.json'}"]) == 0
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--models=m900"], "expected one of one/m900, two/m900, got 'm900'"),
        (["--models=faills"], "expected MODEL or REPOSITORY/MODEL, got 'faills'; did you mean 'fails'?"),
        (["--from=plan.json"], "expected a catalog or a plan, got both"),
    ],
)
def test_what_cannot_be_meant_is_refused(catalog: Path, options: list[str], said: str, capsys: Any) -> None:
    assert main(["pairs", f"--catalog={catalog}", *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_hundred_models_are_written_in_seconds(dry_runs: None, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "train.py").touch()
    models = [f"m{300 + 40 * number}" for number in range(100)]
    repository = {"path": ".", "models": models, "command": ["{python}", "train.py", "{model}"]}
    (tmp_path / "models.json").write_text(json.dumps({"root": ".", "models": {"many": repository}}))
    out = tmp_path / "pairs.json"
    started = time.process_time()
    assert main(["pairs", f"--catalog={tmp_path / 'models.json'}", f"--out={out}"]) == 0
    assert time.process_time() - started < 10
    document = json.loads(out.read_text())
    assert len(document["experiments"]) + len(document["not_run"]) == 9900
    assert "more, all under not_run in the plan" in capsys.readouterr().out


TINY = """
import sys, time, torch
width = 1500
model = torch.nn.Linear(width, width).cuda()
optimizer = torch.optim.Adam(model.parameters())
loader = torch.utils.data.DataLoader(torch.ones(100, width), batch_size=8)
for epoch in range(1000 if "--forever" in sys.argv else 1):
    for batch in loader:
        loss = model(batch.cuda()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(0.05)
"""


@pytest.mark.slow
def test_what_was_predicted_of_a_pair_is_what_a_run_of_the_plan_says(tmp_path: Path, monkeypatch: Any) -> None:
    """A program of torch, dry-run alone; then the plan of it beside itself runs on the virtual GPU."""
    pytest.importorskip("torch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tiny.py").write_text(TINY)
    command = ["{python}", "tiny.py", "{model}"]
    tiny = {"path": ".", "models": ["net"], "command": command, "repeat_args": ["--forever"]}
    (tmp_path / "models.json").write_text(json.dumps({"root": ".", "models": {"tiny": tiny}}))
    out = tmp_path / "pairs.json"
    assert main(["pairs", f"--catalog={tmp_path / 'models.json'}", "--with-itself", f"--out={out}"]) == 0

    session = run_session(out, tmp_path, "--device=virtual")
    assert session.code == 0, session.output
    (verdict,) = session.verdicts.values()
    expected = load_plan(out).by_id["tiny_net__tiny_net"].expected_bytes
    assert expected is not None
    assert abs(verdict["peak_bytes"] - expected) < 3 * MIB, "the same GPU, the same programs"


def of_gpus(folder: Path, *wishes: dict[str, str]) -> Path:
    """A plan of two trainings alone whose groups ask for GPUs."""
    entries = [
        {"mode": "default", "name": f"m{900 + place}", "command": ["{python}", "-c", "pass", f"m{900 + place}"], **wish}
        for place, wish in enumerate(wishes)
    ]
    path = folder / "of_gpu_models.json"
    path.write_text(json.dumps({"experiment_name": "of_gpus", "experiments": entries}))
    return path


@pytest.mark.parametrize("command", ["pairs", "pack"])
def test_trainings_of_groups_that_ask_for_one_gpu_are_for_that_gpu(
    dry_runs: None, tmp_path: Path, capsys: Any, command: str
) -> None:
    wish, out = {"gpu": "24GB", "limit": "20000MB"}, tmp_path / "out.json"
    main([command, f"--from={of_gpus(tmp_path, wish, wish)}", f"--out={out}"])
    assert "2 trainings on 24 GB GPUs, predicted\nlimit 20000 MiB" in capsys.readouterr().out
    groups = load_plan(out).groups
    assert {(group.gpu, group.limits.peak_bytes, group.limits.gpu_bytes) for group in groups} == {
        ("24GB", 20000 * MIB, 24576 * MIB)
    }


def test_trainings_of_groups_for_several_gpus_need_the_gpu_to_be_named(
    dry_runs: None, tmp_path: Path, capsys: Any
) -> None:
    plan, out = of_gpus(tmp_path, {}, {"gpu": "24GB"}), f"--out={tmp_path / 'out.json'}"
    assert main(["pairs", f"--from={plan}", out]) == 2
    found = "expected groups for one GPU, found group01 for that of the plan, group02 for '24GB'"
    assert f"{found}; name the GPU with --gpu" in capsys.readouterr().err
    assert main(["pairs", f"--from={plan}", out, "--gpu=24GB"]) == 0
    assert {group.gpu for group in load_plan(tmp_path / "out.json").groups} == {None}

    plan = of_gpus(tmp_path, {"gpu": "24GB"}, {"gpu": "24GB", "limit": "9000MB"})
    assert main(["pack", f"--from={plan}", out]) == 2
    assert "expected groups with one limit, found 7500 MiB, 9000 MiB; name it with --limit" in capsys.readouterr().err


def test_a_plan_in_the_place_of_a_catalog_is_told_in_a_line(catalog: Path, tmp_path: Path, capsys: Any) -> None:
    """It used to be a list of every key that a catalog does not have."""
    plan = of_gpus(tmp_path, {})
    for words, reported in (
        (["pack", str(plan)], f"{plan}: expected a catalog, found a plan; write --from={plan}"),
        (["pairs", f"--from={catalog}"], f"{catalog}: expected a plan, found a catalog"),
    ):
        assert main(words) == 2
        assert capsys.readouterr().err == f"colocate: {reported}\n"
