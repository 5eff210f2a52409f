import contextlib
import json
import re
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.errors import PlanError
from colocate.plan.plan import Group, Plan, load_plan
from colocate.plan.schema import Entry, Limits, PlanFile, TrainingSpec
from colocate.units import GIB, MIB

CATALOG = {
    "root": ".",
    "models": {
        "toys": {
            "path": ".",
            "models": ["car", "ball"],
            "command": ["{python}", "train.py", "{model}"],
            "repeat_args": ["--repeat"],
            "supported_hyperparams": {
                "epochs": {"flag": "--epochs", "type": "int"},
                "learning_rate": {"flag": "--lr", "type": "float"},
            },
        },
        "tools": {
            "path": ".",
            "models": ["default"],
            "command": ["{python}", "train.py"],
            "supported_hyperparams": {"seed": {"flag": "--seed", "type": "int"}},
        },
    },
}
CAR = {"repo": "toys", "model": "car", "mode": "default", "hyperparameters": {"epochs": 2, "learning_rate": 0.01}}
BALL = {"repo": "toys", "model": "ball", "hyperparameters": {"epochs": 1}}
OWN = {"command": ["{python}", "train.py", "--fast"]}


def pair(**entry: Any) -> dict[str, Any]:
    return deepcopy({"mode": "parallel", "foreground": CAR, "background": BALL} | entry)


def written(folder: Path, *entries: Any, **top: Any) -> Path:
    (folder / "train.py").touch()
    (folder / "models.json").write_text(json.dumps(CATALOG))
    path = folder / "plan.json"
    path.write_text(json.dumps({"experiments": list(entries), **top}))
    return path


def plan_of(folder: Path, *entries: Any, **top: Any) -> Plan:
    return load_plan(written(folder, *entries, **top))


def group_of(folder: Path, entry: Any, **top: Any) -> Group:
    return plan_of(folder, entry, **top).groups[0]


def mistakes_of(folder: Path, *entries: Any, **top: Any) -> list[str]:
    """The mistakes without the name of the file."""
    path = written(folder, *entries, **top)
    with pytest.raises(PlanError) as error:
        load_plan(path)
    return [line.removeprefix(f"{path}: ") for line in error.value.mistakes]


# --- what a plan says


def test_an_entry_becomes_a_group_of_two_trainings(tmp_path: Path) -> None:
    entry = pair(tier="low", expected_memory="2000MB", risk="low", limit="7000MB", expected_minutes=3, note="a note")
    group = group_of(tmp_path, entry)

    assert group.foreground.argv == (sys.executable, "train.py", "car", "--epochs", "2", "--lr", "0.01")
    assert group.background is not None
    assert group.background.command(repeat=True) == [sys.executable, "train.py", "ball", "--epochs", "1", "--repeat"]
    assert (group.id, group.number, group.tier, group.risk, group.note) == ("group01", 1, "low", "low", "a note")
    assert (group.expected_bytes, group.limits.peak_bytes) == (2000 * MIB, 7000 * MIB)
    assert (group.expected_minutes, group.runs, group.missing) == (3, 1, None)


def test_limits_and_tiers_are_the_plans_own_where_it_has_them_and_else_those_of_an_8_gb_gpu(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, pair())
    assert (plan.limits.gpu_bytes, plan.limits.peak_bytes) == (8192 * MIB, 7500 * MIB)
    assert (plan.limits.success_rate, plan.limits.settle_s, plan.limits.overlap) == (0.95, 60, 0.8)
    assert plan.tiers == {"ultra-low": 1.0, "low": 1.0, "medium": 0.95, "high": 0.8}

    limits = {"gpu": "12GB", "peak": 11000, "success_rate": 1, "settle_s": 5, "comment": "our GPU"}
    plan = plan_of(tmp_path, pair(tier="tiny"), limits=limits, tiers={"tiny": 0.5, "huge": {"expected_success": 0}})
    assert (plan.limits.gpu_bytes, plan.limits.peak_bytes) == (12 * 1024 * MIB, 11000 * MIB)
    assert plan.tiers == {"tiny": 0.5, "huge": 0}


@pytest.mark.parametrize(("num_entries", "first"), [(9, "group01"), (99, "group01"), (100, "group001")])
def test_ids_are_numbered_by_position_and_padded_to_one_width(tmp_path: Path, num_entries: int, first: str) -> None:
    plan = plan_of(tmp_path, *[CAR] * num_entries)

    assert plan.ids[0] == first
    assert plan.ids[-1] == f"group{num_entries:02}"


def test_repetitions_are_taken_from_the_entry_then_the_foreground_then_the_plan(tmp_path: Path) -> None:
    """The study ignored them at the entry: 4 of 20 planned runs were done."""
    inner = CAR | {"runs_per_config": 3}
    plan = plan_of(
        tmp_path, pair(runs_per_config=2, foreground=inner), pair(foreground=inner), pair(), runs_per_config=4
    )

    assert [group.runs for group in plan.groups] == [2, 3, 4]


def test_epochs_replaces_those_of_every_training_that_has_some(tmp_path: Path) -> None:
    other = {"repo": "tools", "model": "default", "hyperparameters": {"seed": 1}}
    path = written(tmp_path, pair(), pair(background=other))
    plan = load_plan(path, epochs=7)
    assert [group.foreground.hyperparameters["epochs"] for group in plan.groups] == [7, 7]
    backgrounds = [group.background.hyperparameters for group in plan.groups if group.background]
    assert backgrounds == [{"epochs": 7}, {"seed": 1}]

    with pytest.raises(PlanError, match="epochs: expected at least 1, got 0"):
        load_plan(path, epochs=0)
    with pytest.raises(PlanError, match=r"--epochs: expected a training .* found commands of their own only"):
        load_plan(written(tmp_path, pair(foreground=OWN, background=OWN)), epochs=1)


def test_the_catalog_named_by_the_plan_lies_relative_to_it_and_a_given_one_wins(tmp_path: Path) -> None:
    path = written(tmp_path, pair(), catalog="elsewhere/other.json")
    assert load_plan(path, tmp_path / "models.json").catalog == tmp_path / "models.json"
    (tmp_path / "models.json").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other.json").write_text(json.dumps(CATALOG | {"root": ".."}))

    assert load_plan(path).groups[0].foreground.cwd == tmp_path


def test_a_catalog_that_is_not_there_is_a_mistake_beside_the_others(tmp_path: Path) -> None:
    lines = mistakes_of(tmp_path, pair(id="UPPER"), catalog="none.json")

    assert lines[0] == f"{tmp_path}/none.json: expected a file, there is none"
    assert lines[1].startswith("$.experiments[0].id: expected lower-case letters")


@pytest.mark.parametrize(
    ("name", "safe"), [("a plan/of ours", "a_plan_of_ours"), ("../..", "unnamed"), ("-x-", "x"), ("試験", "試験")]
)
def test_the_plans_name_can_name_a_folder(tmp_path: Path, name: str, safe: str) -> None:
    assert plan_of(tmp_path, pair(), experiment_name=name).name == safe


# --- the study's files


def test_keys_of_the_study_and_free_text_are_accepted(tmp_path: Path) -> None:
    entry = pair(repo="placeholder", model="placeholder", description="text", comment="text", mutation_note="text")
    top = {
        "governor": "performance",
        "use_deduplication": True,
        "historical_csvs": ["a.csv"],
        "cleanup_gpu_memory": False,
        "estimated_experiments": 12,
        "version": "2.0",
        "notes": ["a", "b"],
        "_total": 12,
        "author": "somebody",
    }

    assert len(plan_of(tmp_path, entry, **top).groups) == 1


def test_an_entry_says_its_mode_or_has_that_of_the_plan(tmp_path: Path) -> None:
    """``mixed`` is a label; a foreground without mode is fixed when it has hyperparameters."""
    bare = {key: value for key, value in CAR.items() if key != "mode"}
    both = pair(foreground=bare)
    del both["mode"]
    for mode, *entries in (("mixed", CAR, pair()), ("default", bare, pair()), (None, CAR, both)):
        plan = plan_of(tmp_path, *entries, **({} if mode is None else {"mode": mode}))
        assert [group.background is None for group in plan.groups] == [True, False]
        assert {group.foreground.name for group in plan.groups} == {"toys_car"}


@pytest.mark.parametrize(
    ("entry", "top", "place"),
    [
        (pair(mode="mutation"), {}, "$.experiments[0].mode"),
        (pair(foreground=CAR | {"mode": "mutation"}), {}, "$.experiments[0].foreground.mode"),
        (pair(foreground={"repo": "toys", "model": "car"}), {}, "$.experiments[0].foreground.mode"),
        (pair(foreground=BALL | {"mutate": ["all"]}), {}, "$.experiments[0].foreground.mode"),
        ({"repo": "toys", "model": "car"}, {}, "$.experiments[0].mode"),
        (pair(), {"mode": "mutation"}, "$.mode"),
    ],
)
def test_mutation_is_refused_with_what_to_write_instead(tmp_path: Path, entry: Any, top: Any, place: str) -> None:
    lines = mistakes_of(tmp_path, entry, **top)

    assert [line.split(": ")[0] for line in lines] == [place]
    assert 'write "mode": "default" and the hyperparameters to use' in lines[0]


def test_a_mistake_that_every_entry_has_is_one_sentence(tmp_path: Path) -> None:
    """A plan of the study in mode mutation used to be refused in 51 lines that said the same."""
    entry = pair(foreground=CAR | {"mode": "mutation", "mutate": ["all"]})
    lines = mistakes_of(tmp_path, *[entry] * 60, mode="mutation")

    assert len(lines) == 1
    assert "the same in 60 more places" in lines[0]


@pytest.mark.parametrize("mode", ["nonparallel", "batch"])
def test_a_mode_that_the_study_reads_as_mutation_is_told_so(tmp_path: Path, mode: str) -> None:
    """It used to ask whether 'parallel' was meant, its opposite."""
    lines = mistakes_of(tmp_path, {"repo": "toys", "model": "car", "mode": mode, "mutate_params": ["epochs"]})

    assert len(lines) == 1
    assert "did you mean" not in lines[0]
    assert "mutation" in lines[0]


# --- commands of one's own


def test_an_own_command_runs_in_the_plans_folder(tmp_path: Path) -> None:
    group = group_of(tmp_path, pair(foreground=OWN, background=CAR))

    assert group.foreground.name == "train"
    assert group.foreground.argv == (sys.executable, "train.py", "--fast")
    assert group.foreground.cwd == tmp_path
    assert group.foreground.repository is None
    assert group.foreground.uses_gpu


def test_an_own_command_says_what_the_catalog_would(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "fit.py").touch()
    own = {
        "command": ["{python}", "-u", "fit.py"],
        "name": "fitting",
        "cwd": "sub",
        "env": {"THREADS": "2"},
        "uses_gpu": False,
        "ready_timeout_s": 5,
        "progress_pattern": r"step \d+",
        "repeat_args": ["--again"],
        "metric_patterns": {"loss": r"loss=(\d+)"},
    }
    training = group_of(tmp_path, pair(background=own)).background
    assert training is not None
    assert (training.name, training.cwd, training.env) == ("fitting", tmp_path / "sub", {"THREADS": "2"})
    assert (training.uses_gpu, training.ready_timeout_s, training.repeat_args) == (False, 5, ("--again",))
    assert training.metric_patterns == {"loss": r"loss=(\d+)"}
    # It may be an entry alone, which needs no catalog; and one of the catalog may have variables of its own too.
    assert load_plan(written(tmp_path, OWN | {"mode": "default"}, catalog="none.json")).catalog is None
    env = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    ball = group_of(tmp_path, pair(background=BALL | {"env": env})).background
    assert ball is not None
    assert env.items() <= ball.env.items()


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"command": ["{python}", "gone.py"]}, "command: expected a command that can be started, gone.py is not there"),
        ({"command": ["no-such-program"]}, "the program 'no-such-program' is not on PATH"),
        ({"command": ["./train.py"]}, "train.py is not executable; try chmod +x"),
        ({"command": ["{python}", "x.py"], "cwd": "gone"}, "gone is not there yet"),
        ({"command": []}, "command: expected a list of at least 1, got one of 0"),
        ({"command": "python train.py"}, "command: expected a list, got 'python train.py'"),
        ({"command": ["{python}", 3]}, "command[1]: expected text in quotes, got 3"),
        (OWN | {"repo": "toys"}, "repo: expected either command or repo and model, got both"),
        (OWN | {"hyperparameters": {}}, "hyperparameters: expected either command or repo and model, got both"),
        (OWN | {"name": "../up"}, "name: expected a name of letters, digits"),
        (OWN | {"env": {"COLOCATE_PROBE": "x"}}, "env: expected names without COLOCATE_"),
        (OWN | {"ready_timeout_s": 0}, "ready_timeout_s: expected more than 0.0, got 0"),
        (BALL | {"uses_gpu": False}, "uses_gpu: expected this key with command only"),
    ],
)
def test_an_own_command_that_cannot_run_is_a_mistake_with_its_place(tmp_path: Path, own: Any, expected: str) -> None:
    lines = mistakes_of(tmp_path, pair(background=own))

    assert any(expected in line for line in lines), lines
    assert all(line.startswith("$.experiments[0].background.") for line in lines)


# --- mistakes


def test_all_mistakes_of_a_plan_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    lines = mistakes_of(
        tmp_path,
        pair(foreground=CAR | {"model": "carr"}, limitt="1MB"),
        pair(tier="medum", foreground=CAR | {"hyperparameters": {"epoch": 1}}),
        pair(expected_memory="9000MB", limit=-1),
        {"mode": "parallel", "foreground": CAR, "runs_per_config": 1.5},
        limits={"peak": "8193MB", "overlap": 2},
        governer="performance",
    )

    assert lines == [
        "$.experiments[0].foreground.model: expected one of 'car', 'ball', got 'carr'; did you mean 'car'?",
        "$.experiments[0].limitt: expected a key that we know, got the key 'limitt'; did you mean 'limit'?",
        "$.experiments[1].foreground.hyperparameters.epoch: expected one of 'epochs', 'learning_rate', got 'epoch';"
        " did you mean 'epochs'?",
        "$.experiments[1].tier: expected one of 'ultra-low', 'low', 'medium', 'high', got 'medum';"
        " did you mean 'medium'?",
        "$.experiments[2].expected_memory: expected at most the GPU's 8192MB, got '9000MB'",
        "$.experiments[2].limit: expected a size such as '7500MB' or '8GB', got -1",
        "$.experiments[3].background: expected a training in an entry of mode 'parallel', there is none",
        "$.experiments[3].runs_per_config: expected a whole number, got 1.5",
        "$.governer: expected one of '$schema', 'experiment_name', 'description', 'governor', 'runs_per_config',"
        " 'max_retries', 'mode', 'catalog', 'limits', 'tolerance', 'tiers', 'experiments', 'not_run', got the key"
        " 'governer'; did you mean 'governor'?",
        "$.limits.overlap: expected at most 1.0, got 2",
        "$.limits.peak: expected at most the GPU's 8192MB, got '8193MB'",
    ]


@pytest.mark.parametrize(
    ("entry", "top", "expected"),
    [
        (pair(expected_memory="8193MB"), {}, "$.experiments[0].expected_memory: expected at most the GPU's 8192MB"),
        (pair(limit="9GB"), {}, "$.experiments[0].limit: expected at most the GPU's 8192MB, got '9216MB'"),
        (pair(limit=0), {}, "$.experiments[0].limit: expected more than 0, got 0"),
        (pair(expected_memory=-5), {}, "$.experiments[0].expected_memory: expected a size"),
        (pair(expected_memory=True), {}, "$.experiments[0].expected_memory: expected a size"),
        (pair(expected_memory="9" * 400 + "MB"), {}, "$.experiments[0].expected_memory: expected a size"),
        (pair(id="a/b"), {}, "$.experiments[0].id: expected lower-case letters"),
        (pair(id="group 1"), {}, "$.experiments[0].id: expected lower-case letters"),
        (pair(id="a\u0007"), {}, "$.experiments[0].id: expected text without control characters"),
        (pair(id="not"), {}, "$.experiments[0].id: expected a word that pytest does not use itself, got 'not'"),
        (pair(tier="skip"), {"tiers": {"skip": 1}}, "$.experiments[0].tier: expected a word that pytest does not use"),
        (pair(risk="x" * 201), {}, "$.experiments[0].risk: expected at most 200 characters"),
        (pair(hyperparameters={}), {}, "$.experiments[0].hyperparameters: expected it inside foreground or background"),
        (CAR | {"background": BALL}, {}, "$.experiments[0].background: expected mode 'parallel' only"),
        (
            pair(foreground={"repo": "toys"} | {"mode": "default"}),
            {},
            "foreground.model: expected this key, it is missing",
        ),
        (pair(background={}), {}, "$.experiments[0].background: expected repo and model, or command, got neither"),
        (pair(background=[]), {}, "$.experiments[0].background: expected an object, got a list"),
        (pair(seed="7MB"), {}, "$.experiments[0].seed: expected a key that we know"),
        (pair(seed=1334), {}, "$.experiments[0].seed: expected a key that we know, got the key 'seed'"),
        ("group", {}, "$.experiments[0]: expected an object, got 'group'"),
        (pair(), {"limits": {"peak": "8193MB"}}, "$.limits.peak: expected at most the GPU's 8192MB, got '8193MB'"),
        (pair(), {"limits": {"gpu": "4GB"}}, "$.limits.peak: expected at most the GPU's 4096MB, got '7500MB'"),
        (pair(), {"limits": {"success_rate": 1.01}}, "$.limits.success_rate: expected at most 1.0, got 1.01"),
        (pair(), {"limits": {"settle_s": -1}}, "$.limits.settle_s: expected more than 0.0, got -1"),
        (pair(), {"limits": {"peek": "7GB"}}, "$.limits.peek: expected one of 'gpu', 'peak'"),
        (pair(), {"tiers": {"Low": 1}}, "$.tiers.Low: expected lower-case letters"),
        (pair(), {"tiers": {"low": "all"}}, "$.tiers.low.expected_success: expected a number, got 'all'"),
        (pair(), {"governor": "userspace"}, "$.governor: expected 'performance', 'powersave'"),
        (pair(), {"max_retries": -1}, "$.max_retries: expected at least 0, got -1"),
        (pair(), {"runs_per_config": 0}, "$.runs_per_config: expected at least 1, got 0"),
        (pair(), {"experiments": None}, "$.experiments: expected a list, got null"),
        (pair(), {"experiments": []}, "$.experiments: expected a list of at least 1, got one of 0"),
        (pair(), {"mode": "paralel"}, "$.mode: expected one of 'parallel', 'default', 'mixed', got 'paralel'; did you"),
    ],
)
def test_a_mistake_is_refused_with_its_place(tmp_path: Path, entry: Any, top: Any, expected: str) -> None:
    lines = mistakes_of(tmp_path, entry, **top)

    assert any(expected in line for line in lines), lines


def test_two_groups_of_one_id_are_refused(tmp_path: Path) -> None:
    """pytest would silently call the second one group02_1."""
    lines = mistakes_of(tmp_path, pair(id="group02"), pair())

    assert lines == ["$.experiments[1].id: expected an id of its own, 'group02' is that of $.experiments[0]"]


def test_very_many_mistakes_are_cut(tmp_path: Path) -> None:
    lines = mistakes_of(tmp_path, *[pair(id=f"X{number}") for number in range(80)])

    assert len(lines) == 51
    assert lines[-1] == "30 more mistakes are not shown"


# --- hashes


def test_the_hash_of_a_group_changes_with_what_decides_its_run_and_with_nothing_else(tmp_path: Path) -> None:
    original = group_of(tmp_path, pair()).content_hash
    same = pair(note="other", risk="high", tier="low", expected_memory="1GB", id="other", expected_minutes=9)
    other = [
        pair(foreground=CAR | {"hyperparameters": {"epochs": 3, "learning_rate": 0.01}}),
        pair(background=OWN),
        pair(limit="7000MB"),
    ]

    assert group_of(tmp_path, same).content_hash == original
    assert group_of(tmp_path, pair(), limits={"success_rate": 0.5}).content_hash == original
    assert len({group_of(tmp_path, entry).content_hash for entry in other} | {original}) == 4
    assert group_of(tmp_path, pair(), limits={"stall_s": 9}).content_hash != original
    wishes = ({}, {"gpu": "some GPU"}, {"gpu": "RTX 3090"}, {"gpu": "24GB"}, {"gpu": "8GB"})
    assert len({group_of(tmp_path, CAR | asked).content_hash for asked in wishes}) == 5


def test_the_hash_of_a_plan_is_the_same_wherever_it_lies_and_changes_with_what_it_asks_for(tmp_path: Path) -> None:
    """Journals of machines with checkouts in different places are of one plan; a run is kept for its own place only."""
    entries = [pair(), pair(background=OWN | {"command": ["{python}", "-u", "train.py"], "cwd": "./code"})]
    for name in ("one", "another"):
        (tmp_path / name / "code").mkdir(parents=True)
        (tmp_path / name / "code" / "train.py").touch()
    one, another = (load_plan(written(tmp_path / name, *entries)) for name in ("one", "another"))
    elsewhere = [entries[0], pair(background=OWN | {"command": ["{python}", "-u", "code/train.py"]})]

    assert one.content_hash == another.content_hash
    assert one.groups[1].content_hash != another.groups[1].content_hash
    assert load_plan(written(tmp_path / "one", *elsewhere)).content_hash != one.content_hash
    assert load_plan(written(tmp_path / "one", *entries, limits={"stall_s": 9})).content_hash != one.content_hash


def test_a_script_that_arrives_does_not_change_the_hash(tmp_path: Path) -> None:
    path = written(tmp_path, pair())
    (tmp_path / "train.py").unlink()
    before = load_plan(path).groups[0]
    (tmp_path / "train.py").touch()

    assert before.missing == "train.py is not there yet"
    assert load_plan(path).groups[0].content_hash == before.content_hash


# --- properties

SIZES = st.integers(1, 7000).map(lambda mib: f"{mib}MB") | st.integers(1, 7000)
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: name not in ("and", "or", "not", "gpu")
)
MEMBERS = st.fixed_dictionaries(
    {
        "repo": st.just("toys"),
        "model": st.sampled_from(["car", "ball"]),
        "mode": st.just("default"),
        "hyperparameters": st.fixed_dictionaries(
            {"epochs": st.integers(1, 99)}, optional={"learning_rate": st.floats(0, 1)}
        ),
    }
)
COMMANDS = st.fixed_dictionaries(
    {
        "command": st.lists(st.text("abc {}-", max_size=5), max_size=3).map(
            lambda words: ["{python}", "train.py", *words]
        )
    },
    optional={
        "name": st.just("mine"),
        "env": st.dictionaries(st.sampled_from(["A", "B"]), st.text("xyz", max_size=3)),
        "uses_gpu": st.booleans(),
        "ready_timeout_s": st.floats(0.1, 1e6),
        "repeat_args": st.lists(st.just("-r"), max_size=2),
        "progress_pattern": st.sampled_from([r"\d+/\d+", "step"]),
    },
)
EXTRAS = {
    "tier": st.sampled_from(["low", "high"]),
    "expected_memory": SIZES,
    "limit": SIZES,
    "risk": st.text("abc ", max_size=9),
    "note": st.text("abc \n", max_size=9),
    "runs_per_config": st.integers(1, 9),
    "expected_minutes": st.floats(0.1, 1e3),
}
ENTRIES = st.fixed_dictionaries(
    {"mode": st.just("parallel"), "foreground": MEMBERS | COMMANDS, "background": MEMBERS | COMMANDS}, optional=EXTRAS
) | st.builds(lambda member, extras: member | extras, MEMBERS, st.fixed_dictionaries({}, optional=EXTRAS))
PLANS = st.fixed_dictionaries(
    {"experiments": st.lists(ENTRIES, min_size=1, max_size=4)},
    optional={
        "experiment_name": NAMES,
        "governor": st.sampled_from(["performance", None]),
        "max_retries": st.integers(0, 5),
        "limits": st.fixed_dictionaries({}, optional={"gpu": st.just("8GB"), "success_rate": st.floats(0, 1)}),
        "tiers": st.just({"low": 1, "high": {"expected_success": 0.5}}),
    },
)


@pytest.mark.slow
@settings(deadline=None)
@given(PLANS)
def test_a_plan_survives_the_round_trip(tmp_path_factory: pytest.TempPathFactory, document: Any) -> None:
    path = written(tmp_path_factory.getbasetemp())
    path.write_text(json.dumps(document))
    plan = load_plan(path)
    path.write_text(json.dumps(plan.to_json()))
    again = load_plan(path)

    assert again == plan
    assert again.content_hash == plan.content_hash


@settings(deadline=None)
@given(st.integers(0, 1000), st.decimals(0, 1, places=3))
def test_as_many_groups_are_needed_as_the_rate_says_in_decimals(num_groups: int, rate: Any) -> None:
    plan = load_plan(Path(__file__).parents[1] / "settings" / "parallel_feasibility_test.json")
    limits = plan.limits.model_copy(update={"success_rate": float(rate)})

    assert Plan("p", Path(), (), limits, {}).needed(num_groups) == max(
        int(rate * num_groups), 1 if rate and num_groups else 0
    )


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["parallel", "default", "toys"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
KEYS = st.sampled_from(sorted({key for part in (PlanFile, Entry, TrainingSpec, Limits) for key in part.known_keys()}))
SHAPED = st.recursive(
    ANYTHING | SIZES | MEMBERS | COMMANDS, lambda inner: st.dictionaries(KEYS, inner, max_size=6), max_leaves=20
)


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(ANYTHING | st.dictionaries(KEYS, SHAPED) | st.builds(lambda e: {"experiments": e}, st.lists(SHAPED, max_size=3)))
def test_any_json_is_a_plan_or_a_plan_error(tmp_path_factory: pytest.TempPathFactory, document: Any) -> None:
    path = written(tmp_path_factory.getbasetemp())
    path.write_text(json.dumps(document))
    with contextlib.suppress(PlanError):
        assert load_plan(path).groups


@settings(deadline=None)
@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_a_plan_or_a_plan_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = written(tmp_path_factory.getbasetemp())
    path.write_bytes(content)
    with contextlib.suppress(PlanError):
        assert load_plan(path).groups


def test_a_group_that_asks_for_a_gpu_has_its_size_among_its_limits(tmp_path: Path) -> None:
    """A name that no table knows is a GPU all the same: only its size is not known."""
    group = group_of(tmp_path, CAR | {"gpu": "24GB", "limit": "20GB"})

    assert (group.gpu, group.limits.gpu_bytes, group.limits.peak_bytes) == ("24GB", 24 * GIB, 20 * GIB)
    assert group_of(tmp_path, CAR | {"gpu": "RTX 3090"}).limits.gpu_bytes == 24 * GIB
    assert group_of(tmp_path, CAR | {"gpu": "some GPU"}).limits.gpu_bytes == 8 * GIB
    assert group_of(tmp_path, CAR).gpu is None


@pytest.mark.parametrize(
    ("keys", "mistake"),
    [
        ({"gpu": "0GB"}, "$.experiments[0].gpu: expected a size such as '24GB' or a GPU's name"),
        ({"gpu": "--"}, "$.experiments[0].gpu: expected a size such as '24GB' or a GPU's name"),
        ({"gpu": "4GB"}, "$.experiments[0].limit: expected a limit beside a GPU below the plan's peak of 7500MB"),
        ({"gpu": "4GB", "limit": "5GB"}, "$.experiments[0].limit: expected at most the GPU's 4096MB, got '5120MB'"),
        ({"gpu": "4GB", "limit": "3GB", "expected_memory": "5GB"}, "expected_memory: expected at most the GPU's"),
    ],
)
def test_a_gpu_and_its_limit_go_together(tmp_path: Path, keys: dict[str, Any], mistake: str) -> None:
    with pytest.raises(PlanError, match=re.escape(mistake)):
        group_of(tmp_path, CAR | keys)
