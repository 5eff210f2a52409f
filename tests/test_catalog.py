import contextlib
import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.errors import PlanError
from colocate.plan.catalog import Catalog, Training, load_catalog
from colocate.plan.catalog_schema import Repository
from colocate.plan.validation import Mistakes

TOYS: dict[str, Any] = {
    "path": ".",
    "models": ["car", "ball"],
    "command": ["{python}", "train.py", "{model}"],
    "supported_hyperparams": {
        "epochs": {"flag": "-e", "type": "int", "default": 10, "range": [5, 15], "distribution": "uniform"},
        "learning_rate": {"flag": "--lr", "type": "float"},
        "kind": {"flag": "--kind", "type": "str", "choices": ["soft", "hard"], "models": ["ball"]},
        "dropped": {"flag": None, "type": "int"},
    },
}


def written(folder: Path, toys: dict[str, Any], **top: Any) -> Path:
    (folder / "train.py").touch()
    path = folder / "models.json"
    path.write_text(json.dumps({"root": ".", "models": {"toys": toys}, **top}))
    return path


def catalog(folder: Path, **changes: Any) -> Catalog:
    return load_catalog(written(folder, TOYS | changes))


def training(catalog: Catalog, model: str = "car", **hyperparameters: Any) -> Training:
    mistakes = Mistakes("plan.json")
    found = catalog.training("toys", model, hyperparameters, ("experiments", 0), mistakes)
    mistakes.raise_if_any()
    assert found is not None
    return found


def refused(catalog: Catalog, model: str = "car", repository: str = "toys", **hyperparameters: Any) -> str:
    mistakes = Mistakes("plan.json")
    assert catalog.training(repository, model, hyperparameters, ("experiments", 0), mistakes) is None
    with pytest.raises(PlanError) as error:
        mistakes.raise_if_any()
    return str(error.value)


def wrong(path: Path) -> str:
    with pytest.raises(PlanError) as error:
        load_catalog(path)
    return str(error.value)


def test_a_training_is_a_command_with_its_hyperparameters_as_flags(tmp_path: Path) -> None:
    found = training(catalog(tmp_path), learning_rate=0.01, epochs=1)

    assert found.name == "toys_car"
    assert found.argv == (sys.executable, "train.py", "car", "-e", "1", "--lr", "0.01")
    assert found.cwd == tmp_path
    assert found.hyperparameters == {"epochs": 1, "learning_rate": 0.01}
    assert found.missing is None
    bare = training(catalog(tmp_path), "ball", kind="soft")
    assert bare.argv == (sys.executable, "train.py", "ball", "--kind", "soft"), "else the program's own defaults apply"


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_passed_exactly(number: float) -> None:
    """The study passed six decimals and recorded all of them: the stored value was not the one used."""
    root = Path(__file__).parent
    toys = TOYS | {"command": ["{python}"]}
    mistakes = Mistakes("plan.json")
    spec = Repository.model_validate(toys)
    found = Catalog(root, root, {"toys": spec}).training("toys", "car", {"learning_rate": number}, (), mistakes)

    assert found is not None
    assert float(found.argv[-1]) == number


def test_the_studys_launchers_get_their_model_flag_and_fixed_arguments(tmp_path: Path) -> None:
    toys = {key: value for key, value in TOYS.items() if key != "command"}
    toys |= {"train_script": "./train.sh", "model_flag": "-n", "required_args": {"dataset": "-d d2a"}}
    found = training(load_catalog(written(tmp_path, toys)), epochs=2)

    assert found.argv == (str(tmp_path / "train.sh"), "-n", "car", "-d", "d2a", "-e", "2")
    alone = {"path": ".", "models": ["default"], "train_script": "./train.sh", "model_flag": "-n"}
    assert training(load_catalog(written(tmp_path, alone)), model="default").argv == (str(tmp_path / "train.sh"),)


def test_a_value_per_model_falls_back_to_the_star_and_then_to_the_default(tmp_path: Path) -> None:
    known = catalog(
        tmp_path,
        command={"car": ["{python}", "train.py"], "*": ["{python}", "-c", "{model}"]},
        uses_gpu={"car": False},
        repeat_args={"*": ["--repeat"]},
        ready_timeout_s={"ball": 7},
    )
    car, ball = training(known), training(known, "ball")

    assert car.argv[1:] == ("train.py",)
    assert ball.argv[1:] == ("-c", "ball")
    assert (car.uses_gpu, ball.uses_gpu) == (False, True)
    assert car.command(repeat=True) == [*car.argv, "--repeat"]
    assert (car.ready_timeout_s, ball.ready_timeout_s) == (300.0, 7.0)


def test_arguments_for_repeating_and_dry_runs_are_added_only_then(tmp_path: Path) -> None:
    found = training(catalog(tmp_path, repeat_args=["--repeat"], dry_run_args=["--max-steps", "4"]))

    assert found.command() == list(found.argv)
    assert found.command(repeat=True, dry_run=True) == [*found.argv, "--repeat", "--max-steps", "4"]


def test_a_hyperparameter_without_a_flag_is_recorded_and_named_as_not_passed(tmp_path: Path) -> None:
    found = training(catalog(tmp_path), dropped=3)

    assert found.hyperparameters == {"dropped": 3}
    assert found.unpassed == ("dropped",)
    assert "3" not in found.argv


def test_a_misspelt_model_or_repository_is_an_error_with_a_suggestion(tmp_path: Path) -> None:
    line = "plan.json: $.experiments[0].model: expected one of 'car', 'ball', got 'bal'; did you mean 'ball'?"
    assert refused(catalog(tmp_path), "bal") == line
    line = "plan.json: $.experiments[0].repo: expected 'toys', got 'toy'; did you mean 'toys'?"
    assert refused(catalog(tmp_path), repository="toy") == line
    assert "got 'kind'" in refused(catalog(tmp_path), "car", kind="soft"), "one of another model"


def test_an_unknown_hyperparameter_is_never_dropped(tmp_path: Path) -> None:
    """The study dropped pcb's misspelt "batchsize", and the protective batch size never took effect."""
    message = refused(catalog(tmp_path), epoch=1, lr=0.1, warmup=3)

    assert "hyperparameters.epoch: expected one of 'epochs', 'learning_rate', 'dropped', got 'epoch'" in message
    assert "did you mean 'epochs'?" in message
    assert "got 'lr'; did you mean 'learning_rate'?" in message
    assert "got 'warmup'; one that the program has no option for needs \"flag\": null in the catalog" in message


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("epochs", 1.0, "expected a whole number, got 1.0"),
        ("epochs", "1", "expected a whole number, got '1'"),
        ("epochs", True, "expected a whole number, got true"),
        ("epochs", 0, "expected at least 1, got 0"),
        ("learning_rate", False, "expected a number, got false"),
        ("learning_rate", None, "expected a number, got null"),
        ("learning_rate", [0.1], "expected a number, got a list"),
        ("kind", "har", "expected one of 'soft', 'hard', got 'har'; did you mean 'hard'?"),
    ],
)
def test_a_hyperparameter_of_the_wrong_type_is_an_error(tmp_path: Path, name: str, value: Any, expected: str) -> None:
    message = refused(catalog(tmp_path), "ball", **{name: value})

    assert message == f"plan.json: $.experiments[0].hyperparameters.{name}: {expected}"


# --- what is not there


def test_a_module_that_is_not_there_yet_is_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "toys").mkdir()
    known = catalog(tmp_path, command=["{python}", "-u", "-m", "toys.{model}"])
    assert training(known).missing == "toys/car.py is not there yet"
    (tmp_path / "toys" / "car.py").touch()
    assert training(known).missing is None

    assert training(catalog(tmp_path, path="repos/toys")).missing == "repos/toys is not there yet"
    elsewhere = load_catalog(written(tmp_path, TOYS, root="elsewhere"))
    assert training(elsewhere).missing == f"{tmp_path / 'elsewhere'} is not there yet", "before what lies in it"


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["{python}", "-W", "ignore", "gone.py"], "gone.py is not there yet"),
        (["bash", "gone.sh"], "gone.sh is not there yet"),
        (["./gone.sh"], "gone.sh is not there yet"),
        (["./train.py"], "train.py is not executable; try chmod +x"),
        (["./go.sh"], None),
        (["{python}", "-m", "json.tool"], None),
        (["{python}", "-m", "no_such_module_at_all"], "the module 'no_such_module_at_all' is not installed"),
        (["no-such-program"], "the program 'no-such-program' is not on PATH"),
        (["{python}", "-c", "gone.py"], None),
        (["bash", "-c", "gone.sh"], None),
        (["echo", "gone.py"], None),
        (["{python}", "x" * 5000 + ".py"], "x" * 5000 + ".py is not there yet"),
    ],
)
def test_a_program_or_script_that_is_not_there_is_named(
    tmp_path: Path, command: list[str], sentence: str | None
) -> None:
    (tmp_path / "go.sh").touch()
    (tmp_path / "go.sh").chmod(stat.S_IRWXU)

    assert training(catalog(tmp_path, command=command)).missing == sentence


# --- mistakes of the catalog itself


def test_all_mistakes_of_a_catalog_are_told_at_once(tmp_path: Path) -> None:
    toys = {
        "path": ".",
        "models": ["car"],
        "supported_hyperparams": {"epochs": {"flg": "-e", "flag": "-e", "type": "integer"}},
        "performance_metrics": {"log_patterns": {"accuracy": "acc: ([0-9"}},
        "uses_gpu": {"car": "yes"},
        "trainscript": "./train.sh",
    }
    lines = wrong(written(tmp_path, toys)).splitlines()

    places = [line.split(": ")[1].removeprefix("$.models.toys.") for line in lines]
    assert places == [
        "performance_metrics.log_patterns.accuracy",
        "supported_hyperparams.epochs.flg",
        "supported_hyperparams.epochs.type",
        "trainscript",
        "uses_gpu.car",
    ]
    assert "did you mean 'train_script'?" in lines[3]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"command": {}}, "$.models.toys: expected command or train_script, got neither"),
        ({"command": {"car": ["x"]}}, "$.models.toys.command.ball: expected a command for every model"),
        ({"command": []}, "$.models.toys.command: expected a list of at least 1, got one of 0"),
        ({"repeat_args": {"cat": ["-r"]}}, "$.models.toys.repeat_args.cat: expected one of 'car', 'ball', got 'cat'"),
        ({"progress_pattern": "["}, "$.models.toys.progress_pattern: expected a regular expression, got '['"),
        ({"progress_pattern": "a{99999999999999}"}, "expected a regular expression"),
        ({"performance_metrics": {"log_patterns": {"x": "loss"}}}, "with a group around the number, got 'loss'"),
        ({"ready_timeout_s": 0}, "$.models.toys.ready_timeout_s: expected more than 0.0, got 0"),
        ({"env": {"COLOCATE_COOKIE": "x"}}, "expected names without COLOCATE_, which the harness sets itself"),
        ({"env": {"A B": "x"}}, "expected names of environment variables, got 'A B'"),
        ({"required_args": {"dataset": "-d 'x"}}, "$.models.toys.required_args.dataset: expected words as in a shell"),
        ({"models": []}, "$.models.toys.models: expected a list of at least 1, got one of 0"),
    ],
)
def test_a_mistake_of_a_catalog_is_refused_with_its_place(tmp_path: Path, changes: Any, expected: str) -> None:
    assert expected in wrong(written(tmp_path, TOYS | changes))


def test_a_catalog_has_a_file_a_root_above_its_folder_and_names_that_stay_in_the_results_folder(tmp_path: Path) -> None:
    assert wrong(tmp_path / "none.json").endswith("none.json: expected a file, there is none")
    (tmp_path / "settings").mkdir()
    path = tmp_path / "settings" / "models.json"
    path.write_text(json.dumps({"models": {"toys": TOYS}}))
    assert load_catalog(path).root == tmp_path
    path.write_text(json.dumps({"models": {"../toys": TOYS}}))
    assert "expected a name of letters, digits" in wrong(path)


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
KEYS = ("models", "command", "uses_gpu", "repeat_args", "env", "supported_hyperparams", "performance_metrics")


@settings(deadline=None)
@given(st.sampled_from(KEYS), st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_value_under_any_key_of_a_catalog_loads_or_is_a_plan_error(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    with contextlib.suppress(PlanError):
        path = written(tmp_path_factory.getbasetemp(), TOYS | {key: value})
        assert load_catalog(path).repositories.keys() == {"toys"}
