"""The files in settings/, and how a settings file is read."""

import json
import os
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from colocate.errors import PlanError
from colocate.plan.catalog import load_catalog
from colocate.plan.catalog_schema import CatalogFile
from colocate.plan.plan import load_plan, schemas, write_schemas
from colocate.plan.reading import MAX_BYTES
from colocate.plan.schema import PlanFile
from colocate.plan.validation import Mistakes, json_path, suggestion
from colocate.units import MIB

SETTINGS = Path(__file__).parents[1] / "settings"
PLANS = ["parallel_feasibility_test.json", "minimal_validation.json"]
CATALOGS = ["models.json", "models_green_deep_learning.json"]

REID = "Person_reID_baseline_pytorch"
TWELVE = [
    # foreground, background, expected MiB, tier: the study's parallel_feasibility_test.json and its design
    ("examples_mnist_ff", "pytorch_resnet_cifar10_resnet20", 1300, "ultra-low"),
    ("examples_mnist", "VulBERTa_mlp", 2000, "low"),
    ("examples_mnist", "examples_siamese", 2000, "low"),
    ("examples_mnist_rnn", f"{REID}_pcb", 2500, "low"),
    ("examples_mnist_rnn", "MRT-OAST_default", 2700, "low"),
    ("examples_mnist_rnn", f"{REID}_hrnet18", 3000, "medium"),
    ("VulBERTa_mlp", "VulBERTa_cnn", 3000, "medium"),
    ("examples_siamese", f"{REID}_pcb", 3500, "medium"),
    (f"{REID}_pcb", "VulBERTa_mlp", 3500, "medium"),
    ("examples_mnist_ff", f"{REID}_densenet121", 4000, "medium"),
    (f"{REID}_pcb", "bug-localization-by-dnn-and-rvsm_default", 4000, "medium"),
    (f"{REID}_densenet121", "VulBERTa_mlp", 5000, "high"),
]
FOURTEEN = [
    # name, epochs, learning rate, dropout, weight decay: the study's minimal_validation.json
    (f"{REID}_densenet121", 60, 0.025, 0.5, None),
    (f"{REID}_densenet121", 60, 0.1, 0.5, None),
    ("pytorch_resnet_cifar10_resnet20", 200, 0.05, None, None),
    ("pytorch_resnet_cifar10_resnet20", 200, 0.2, None, None),
    ("pytorch_resnet_cifar10_resnet20", 200, 0.1, None, 1e-5),
    ("pytorch_resnet_cifar10_resnet20", 200, 0.1, None, 0.01),
    ("MRT-OAST_default", 10, 5e-5, 0.2, None),
    ("MRT-OAST_default", 10, 2e-4, 0.2, None),
    ("MRT-OAST_default", 10, 1e-4, 0.0, None),
    ("MRT-OAST_default", 10, 1e-4, 0.4, None),
    ("MRT-OAST_default", 10, 1e-4, 0.2, 1e-5),
    ("MRT-OAST_default", 10, 1e-4, 0.2, 0.01),
    ("VulBERTa_mlp", 10, 3e-5, None, 1e-5),
    ("VulBERTa_mlp", 10, 3e-5, None, 0.01),
]
HYPERPARAMETERS: dict[str, dict[str, float]] = {
    "examples": {"learning_rate": 0.01, "batch_size": 32},
    "pytorch_resnet_cifar10": {"learning_rate": 0.1},
    "VulBERTa": {"learning_rate": 3e-5},
    REID: {"learning_rate": 0.05, "dropout": 0.5},
    "MRT-OAST": {"learning_rate": 1e-4, "dropout": 0.2},
    "bug-localization-by-dnn-and-rvsm": {"max_iter": 10000, "alpha": 1e-5, "kfold": 10},
}


# --- the files


def test_the_twelve_groups_are_those_of_the_study() -> None:
    plan = load_plan(SETTINGS / PLANS[0])
    found = [
        (group.foreground.name, group.background and group.background.name, group.expected_bytes, group.tier)
        for group in plan.groups
    ]

    assert found == [(foreground, background, mib * MIB, tier) for foreground, background, mib, tier in TWELVE]
    assert plan.ids == tuple(f"group{number:02}" for number in range(1, 13))
    assert [group.risk for group in plan.groups] == ["very low", *["low"] * 4, *["medium"] * 6, "high"]


def test_the_trainings_of_the_twelve_groups_have_the_hyperparameters_of_the_study() -> None:
    plan = load_plan(SETTINGS / PLANS[0])

    for training in (training for group in plan.groups for training in group.trainings):
        assert training.repository is not None
        expected = HYPERPARAMETERS[training.repository] | {"epochs": 1, "seed": 1334}
        assert training.hyperparameters == expected
        assert training.unpassed == ()


def test_the_plan_demands_eleven_of_twelve_below_7500_mib() -> None:
    plan = load_plan(SETTINGS / PLANS[0])

    assert plan.needed(len(plan.groups)) == 11
    assert (plan.limits.gpu_bytes, plan.limits.peak_bytes, plan.limits.settle_s) == (8192 * MIB, 7500 * MIB, 60)
    assert plan.tiers == {"ultra-low": 1.0, "low": 1.0, "medium": 0.95, "high": 0.8}
    assert (plan.name, plan.max_retries) == ("parallel_feasibility_test", 1)


def test_the_fourteen_trainings_alone_are_those_of_the_study() -> None:
    plan = load_plan(SETTINGS / PLANS[1])
    names = ("epochs", "learning_rate", "dropout", "weight_decay")
    found = [(group.foreground.name, *map(group.foreground.hyperparameters.get, names)) for group in plan.groups]

    assert found == FOURTEEN
    assert all(group.background is None for group in plan.groups)
    assert {group.foreground.hyperparameters["seed"] for group in plan.groups} == {1334}


def test_the_studys_launcher_is_not_given_the_epochs_that_it_has_no_option_for() -> None:
    plan = load_plan(SETTINGS / PLANS[0], SETTINGS / CATALOGS[1])
    background = plan.groups[10].background

    assert background is not None
    assert background.unpassed == ("epochs",)
    assert "--epochs" not in background.argv
    assert background.command(repeat=True) == list(background.argv)


def test_every_program_of_ours_that_is_there_has_the_options_that_the_catalog_passes() -> None:
    catalog = load_catalog(SETTINGS / CATALOGS[0])
    root = SETTINGS.parent
    shared = (root / "workloads" / "common.py").read_text(encoding="utf-8")
    for repository, spec in catalog.repositories.items():
        for model in spec.models:
            training = catalog.training(repository, model, {}, (), Mistakes("models.json"))
            assert training is not None
            program = root / (training.argv[2].replace(".", "/") + ".py")
            if training.missing is None:
                text = program.read_text(encoding="utf-8") + shared
                flags = {kind.flag for kind in catalog.supported(repository, model).values()}
                flags |= {word for word in training.repeat_args + training.dry_run_args if word.startswith("--")}
                assert [flag for flag in flags if f'"{flag}"' not in text] == [], program.name


def test_the_published_schemas_are_those_of_the_code_and_the_files_name_them(tmp_path: Path) -> None:
    """If this fails: python -m colocate.plan."""
    write_schemas(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*schemas(), "gpu_models.schema.json"}
    for name, text in schemas().items():
        assert (SETTINGS / name).read_text(encoding="utf-8") == text == (tmp_path / name).read_text(encoding="utf-8")
    for name in (*PLANS, *CATALOGS):
        document = json.loads((SETTINGS / name).read_text(encoding="utf-8"))
        assert (SETTINGS / document["$schema"]).is_file()
    for plan, catalog in product(PLANS, CATALOGS):
        assert len(load_plan(SETTINGS / plan, SETTINGS / catalog).groups) in (12, 14)


def test_the_readme_explains_every_key() -> None:
    readme = (SETTINGS / "README.md").read_text(encoding="utf-8")
    keys: set[str] = set()
    for text in schemas().values():
        schema = json.loads(text)
        for part in (schema, *schema["$defs"].values()):
            keys.update(part.get("properties", {}))

    assert sorted(key for key in keys if f"`{key}`" not in readme) == []


def test_the_examples_of_the_readme_load(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    blocks = re.findall(r"```json\n(.*?)```", (SETTINGS / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    plans = [block for block in blocks if '"experiments"' in block]
    for number, block in enumerate(plans):
        path = tmp_path / f"plan{number}.json"
        path.write_text(block)
        assert load_plan(path, None if "command" in block else SETTINGS / "models.json").groups
    catalogs = [block for block in blocks if '"models": {' in block]
    for block in catalogs:
        CatalogFile.model_validate(json.loads(block))

    assert len(plans) >= 2
    assert catalogs


# --- how a file is read


def mistakes_in(content: bytes | str, tmp_path: Path) -> str:
    path = tmp_path / "plan.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PlanError) as error:
        load_plan(path)
    return str(error.value).replace(str(path), "plan.json")


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    text = (SETTINGS / PLANS[0]).read_text(encoding="utf-8").replace("\n", "\r\n")
    (tmp_path / "plan.json").write_bytes(b"\xef\xbb\xbf" + text.encode())

    assert len(load_plan(tmp_path / "plan.json", SETTINGS / "models.json").groups) == 12


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"experiments": [\n  {"mode" "parallel"}]}', "plan.json:2:11: expecting ':' delimiter"),
        ("", "plan.json: expected JSON, the file is empty"),
        ("\ufeff  \n", "plan.json: expected JSON, the file is empty"),
        (b'{"a":\n "\xff"}', "plan.json:2:3: expected UTF-8 text, got the byte 0xff; save the file as UTF-8"),
        ("[" * 100_000, "plan.json: expected at most 32 levels of nesting, got far more"),
        ('{"_a":' * 40 + "1" + "}" * 40, "expected at most 32 levels of nesting, got more"),
        ('{"max_retries": 1' + "0" * 5000 + "}", "plan.json: expected numbers of a sensible length"),
        ('{"max_retries": 1' + "0" * 400 + "}", "got a number of more than 60 digits"),
        ('{"_a": NaN, "_b": [-Infinity, 1e999]}', "$._a: expected a finite number, got nan"),
        ('{"_a": NaN, "_b": [-Infinity, 1e999]}', "$._b[1]: expected a finite number, got inf"),
        ('{"mode": "parallel", "mode": "default"}', "$.mode: expected every key once, got it twice"),
        ('{"_a": {"x": 1, "y": {"z": 1, "z": 2}}}', "$._a.y.z: expected every key once, got it twice"),
        ('{"note": "a\\u001b[31m"}', "$.note: expected text without control characters, got 'a\\x1b[31m'"),
        ('{"a\\u0000b": 1}', "$: expected text without control characters, got 'a\\x00b'"),
        ('{"note": "\\ud800"}', "$.note: expected text without control characters, got '\\ud800'"),
        ("[]", "plan.json: $: expected an object, got a list"),
        ("1", "plan.json: $: expected an object, got 1"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(tmp_path: Path, content: bytes | str, expected: str) -> None:
    assert expected in mistakes_in(content, tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, '{"_a":' * 40 + "1" + "}" * 40])
def test_deep_nesting_is_one_clear_line(tmp_path: Path, content: str) -> None:
    assert len(mistakes_in(content, tmp_path).splitlines()) == 1


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, "expected a file, there is none"),
        (lambda path: path.mkdir(), "expected a file, got a directory"),
        (os.mkfifo, "expected a file, got something that is no regular file"),
        (lambda path: path.symlink_to(path), "expected a "),
        (lambda path: path.write_bytes(bytes(MAX_BYTES + 1)), r"expected at most 32 MiB of settings, got 32 MiB$"),
    ],
)
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path, make: Any, expected: str) -> None:
    make(tmp_path / "plan.json")

    with pytest.raises(PlanError, match=expected):
        load_plan(tmp_path / "plan.json")


def test_a_file_below_the_working_directory_is_named_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "x.json").write_text("{}")

    with pytest.raises(PlanError) as error:
        load_plan(tmp_path / "settings" / "x.json")

    assert str(error.value) == "settings/x.json: $.experiments: expected this key, it is missing"


def test_places_are_written_as_json_paths() -> None:
    assert json_path(()) == "$"
    assert json_path(("experiments", 3, "foreground", "mode")) == "$.experiments[3].foreground.mode"
    assert json_path(("tiers", "ultra-low", "a b")) == "$.tiers.ultra-low['a b']"


@pytest.mark.parametrize(
    ("word", "known"),
    [
        ("mnits", "mnist"),
        ("batchsize", "batch_size"),
        ("Learning-Rate", "learning_rate"),
        ("repository", "repo"),
        ("expected_mem", "expected_memory"),
        ("hyperparams", "hyperparameters"),
    ],
)
def test_a_near_word_is_suggested(word: str, known: str) -> None:
    others = ["mnist", "batch_size", "learning_rate", "repo", "expected_memory", "hyperparameters", "tier", "id"]

    assert suggestion(word, others) == f"; did you mean {known!r}?"
    for own in ("seed", "author", "comment", "purpose", "x"):
        assert suggestion(own, PlanFile.known_keys()) == "", "a word of its own is no misspelling"
