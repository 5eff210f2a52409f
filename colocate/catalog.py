"""The models catalog: repository, model and hyperparameters become a training with a command line.

The file format is that of the study's models_config.json and a few keys of ours. Knows no plan and starts nothing.
"""

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from colocate.settings import (
    EVERY,
    FREE_TEXT,
    Environment,
    Mistakes,
    Name,
    Place,
    Settings,
    display_name,
    one_of,
    read_json,
    shown,
    suggestion,
    validated,
)

READY_TIMEOUT_S = (
    300.0  # the slowest of the study's programs works 45 s on the CPU first; then a factor for a slow disk
)

Value = int | float | str
T = TypeVar("T")


@dataclass(frozen=True)
class Training:
    """A program with its arguments, ready to be run once.

    ``repeat_args`` are added to ``argv`` when it runs as the background (so that it repeats its epochs in one
    process), ``rehearsal_args`` when it is only rehearsed on the virtual card. ``unpassed`` are the hyperparameters
    that the catalog accepts but the program has no argument for. ``missing`` says why it cannot be run yet.
    ``written`` tells what stands in the settings for a path that ``cwd`` or a word of ``argv`` became on this machine.
    The patterns are regular expressions for lines of its log; sizes and times carry their units in their names.
    """

    name: str
    argv: tuple[str, ...]
    cwd: Path
    repository: str | None = None
    model: str | None = None
    hyperparameters: Mapping[str, Value] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    uses_gpu: bool = True
    repeat_args: tuple[str, ...] = ()
    rehearsal_args: tuple[str, ...] = ()
    ready_timeout_s: float = READY_TIMEOUT_S
    ready_pattern: str | None = None
    progress_pattern: str | None = None
    metric_patterns: Mapping[str, str] = field(default_factory=dict)
    unpassed: tuple[str, ...] = ()
    missing: str | None = None
    written: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides how it runs, as it stands in the settings: the same wherever these and its programs lie."""
        argv = [self.written.get(word, word) for word in self.argv]
        known = asdict(self) | {"argv": argv, "cwd": self.written.get(str(self.cwd), str(self.cwd))}
        return {name: value for name, value in known.items() if name not in ("missing", "written")}

    def command(self, *, repeat: bool = False, rehearsal: bool = False) -> list[str]:
        """The whole command line for one of the two roles, on a real card or on the virtual one."""
        return [*self.argv, *(self.repeat_args if repeat else ()), *(self.rehearsal_args if rehearsal else ())]


# --- the file --------------------------------------------------------------------------------------------------------


def checked_pattern(value: str) -> str:
    """A regular expression that Python can compile.

    Raises:
        ValueError: it cannot; the message says why.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # a doubtful set such as [[a] is the author's business
            re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"expected a regular expression, got {shown(value)} ({error})") from None
    return value


def _checked_metric(value: str) -> str:
    if re.compile(checked_pattern(value)).groups < 1:
        raise ValueError(f"expected a regular expression with a group around the number, got {shown(value)}")
    return value


def _checked_words(value: str) -> str:
    try:
        shlex.split(value)
    except ValueError as error:
        raise ValueError(f"expected words as in a shell, got {shown(value)} ({error})") from None
    return value


def _for_every_model(value: Any) -> Any:
    return value if isinstance(value, dict) else {EVERY: value}


def _per_model(schema: dict[str, Any]) -> tuple[BeforeValidator, WithJsonSchema]:
    """One value for all models of a repository, or an object with one for each; ``"*"`` names the others."""
    either = {"anyOf": [schema, {"type": "object", "additionalProperties": schema}]}
    return BeforeValidator(_for_every_model), WithJsonSchema(either)


Pattern = Annotated[str, AfterValidator(checked_pattern), Field(json_schema_extra={"format": "regex"})]
Metric = Annotated[str, AfterValidator(_checked_metric), Field(json_schema_extra={"format": "regex"})]
Words = Annotated[list[str], Field(min_length=1)]
_WORDS = {"type": "array", "items": {"type": "string"}}
Scalar = Annotated[Any, WithJsonSchema({"type": ["number", "string", "null"]})]


class Hyperparameter(Settings):
    """How one hyperparameter is passed to the programs of a repository."""

    ignored_keys: ClassVar = FREE_TEXT
    flag: str | None = Field(description="option before the value; null: accepted, but the program has no such option")
    type: Literal["int", "float", "str"]
    choices: list[str] | None = Field(default=None, description="the only values that a str may have")
    models: list[str] | None = Field(
        default=None, description="the only models that know it; default: all of the repository"
    )
    default: Scalar = Field(default=None, description="the study's centre of mutation; never passed")
    range: list[float] | None = Field(default=None, description="the study's range of mutation; not enforced")
    distribution: Literal["uniform", "log_uniform"] | None = None
    zero_probability: float | None = None
    program_default: Annotated[dict[str, Scalar], *_per_model({"type": ["number", "string"]})] = Field(
        default={}, description="what the program takes where a plan says nothing; proposals start from it"
    )

    def of_program(self, model: str) -> Value | None:
        """What a model's program takes by itself; None where nobody wrote it down."""
        value: Value | None = _of(self.program_default, model, None)
        return value


class Metrics(Settings):
    """How the results are found in the log of a training."""

    ignored_keys: ClassVar = FREE_TEXT
    log_patterns: dict[str, Metric] = Field(
        default={}, description="metric to regular expression; last match wins, any case"
    )


class Repository(Settings):
    """The programs of one repository and how they are started."""

    ignored_keys: ClassVar = FREE_TEXT
    path: str = Field(description="folder that the programs are started in, relative to the catalog's root")
    models: list[str] = Field(min_length=1)
    supported_hyperparams: dict[str, Hyperparameter] = Field(default={})
    train_script: str | None = Field(default=None, description="the launcher, relative to path")
    model_flag: str | None = Field(default=None, description="option of the launcher before the model's name")
    required_args: dict[str, Annotated[str, AfterValidator(_checked_words)]] = Field(
        default={}, description="fixed arguments; the names are notes"
    )
    performance_metrics: Metrics = Field(default=Metrics())
    command: Annotated[dict[str, Words], *_per_model(_WORDS)] = Field(
        default={},
        description="instead of train_script and model_flag; {python}: the harness's interpreter, {model}: the model",
    )
    uses_gpu: Annotated[dict[str, bool], *_per_model({"type": "boolean"})] = Field(default={})
    repeat_args: Annotated[dict[str, list[str]], *_per_model(_WORDS)] = Field(default={})
    rehearsal_args: Annotated[dict[str, list[str]], *_per_model(_WORDS)] = Field(default={})
    ready_timeout_s: Annotated[
        dict[str, Annotated[float, Field(gt=0)]], *_per_model({"type": "number", "exclusiveMinimum": 0})
    ] = Field(default={})
    ready_pattern: Annotated[dict[str, Pattern], *_per_model({"type": "string"})] = Field(default={})
    progress_pattern: Annotated[dict[str, Pattern], *_per_model({"type": "string"})] = Field(default={})
    env: Environment = Field(default={})


class CatalogFile(Settings):
    """The settings file that says how the trainings of a plan are started."""

    ignored_keys: ClassVar = FREE_TEXT
    schema_: str | None = Field(default=None, alias="$schema")
    root: str = Field("..", description="where the repositories' paths start, relative to this file's folder")
    models: dict[Name, Repository]


# --- the catalog -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Catalog:
    """The repositories that a plan may name, read from one file; ``root`` is where their paths start."""

    path: Path
    root: Path
    repositories: Mapping[str, Repository]

    def training(
        self, repository: str, model: str, hyperparameters: Mapping[str, Any], place: Place, mistakes: Mistakes
    ) -> Training | None:
        """The training that an entry of a plan means, or None with what is wrong added to ``mistakes``."""
        spec = self.repositories.get(repository)
        if spec is None:
            mistakes.add((*place, "repo"), _unknown(repository, self.repositories))
            return None
        if model not in spec.models:
            mistakes.add((*place, "model"), _unknown(model, spec.models))
            return None
        supported = self.supported(repository, model)
        wrong = list(_wrong_hyperparameters(hyperparameters, supported))
        for name, message in wrong:
            mistakes.add((*place, "hyperparameters", name), message)
        return None if wrong else self._training(repository, model, spec, supported, hyperparameters)

    def supported(self, repository: str, model: str) -> dict[str, Hyperparameter]:
        """The hyperparameters that a model accepts; empty for a repository that the catalog does not have."""
        spec = self.repositories.get(repository)
        known = spec.supported_hyperparams if spec else {}
        return {name: kind for name, kind in known.items() if kind.models is None or model in kind.models}

    def _training(
        self,
        repository: str,
        model: str,
        spec: Repository,
        supported: Mapping[str, Hyperparameter],
        hyperparameters: Mapping[str, Value],
    ) -> Training:
        cwd = Path(os.path.normpath(self.root / spec.path))
        passed = {name: hyperparameters[name] for name in supported if name in hyperparameters}
        program = _program(spec, model, cwd)
        argv = [*(word for word, _ in program), *_arguments(spec, supported, passed)]
        return Training(
            name=re.sub(r"[^A-Za-z0-9._-]", "_", f"{repository}_{model}"),
            repository=repository,
            model=model,
            hyperparameters=passed,
            argv=tuple(argv),
            cwd=cwd,
            env=dict(spec.env),
            uses_gpu=_of(spec.uses_gpu, model, True),
            repeat_args=tuple(_of(spec.repeat_args, model, [])),
            rehearsal_args=tuple(_of(spec.rehearsal_args, model, [])),
            ready_timeout_s=_of(spec.ready_timeout_s, model, READY_TIMEOUT_S),
            ready_pattern=_of(spec.ready_pattern, model, None),
            progress_pattern=_of(spec.progress_pattern, model, None),
            metric_patterns=dict(spec.performance_metrics.log_patterns),
            unpassed=tuple(name for name in passed if supported[name].flag is None),
            missing=what_is_missing(argv, cwd, spec.env, self.root),
            written={**dict(program), str(cwd): spec.path},
        )


def default_catalog(plan: Path) -> Path:
    """The catalog of a plan that names none: ``models.json`` beside it, else the one in our own settings folder."""
    beside = plan.parent / "models.json"
    return beside if beside.is_file() else Path(__file__).parents[1] / "settings" / "models.json"


def load_catalog(path: Path | str) -> Catalog:
    """The catalog in a file.

    Raises:
        PlanError: the file cannot be read or contains mistakes; all of them, one per line.
    """
    path = Path(path)
    mistakes = Mistakes(display_name(path))
    document = validated(CatalogFile, read_json(path, mistakes), (), mistakes)
    if document is not None:
        _check(document, mistakes)
    mistakes.raise_if_any()
    assert document is not None
    root = Path(os.path.normpath(Path.cwd() / path.parent / document.root))
    return Catalog(path=path, root=root, repositories=dict(document.models))


def _check(document: CatalogFile, mistakes: Mistakes) -> None:
    """What the types alone do not say about a catalog."""
    for name, spec in document.models.items():
        place: Place = ("models", name)
        if not spec.command and spec.train_script is None:
            mistakes.add(place, "expected command or train_script, got neither")
        for key, model in _models_named(spec):
            if model not in (*spec.models, EVERY):
                mistakes.add((*place, *key), _unknown(model, spec.models))
        if spec.command and spec.train_script is None and EVERY not in spec.command:
            for model in set(spec.models) - set(spec.command):
                mistakes.add((*place, "command", model), "expected a command for every model, there is none for it")


def _models_named(spec: Repository) -> Iterator[tuple[Place, str]]:
    """Every place of a repository's entry that names a model."""
    for key in ("command", "uses_gpu", "repeat_args", "rehearsal_args", "ready_timeout_s", "ready_pattern"):
        yield from (((key, model), model) for model in getattr(spec, key))
    yield from ((("progress_pattern", model), model) for model in spec.progress_pattern)
    for name, kind in spec.supported_hyperparams.items():
        place = ("supported_hyperparams", name, "models")
        yield from (((*place, index), model) for index, model in enumerate(kind.models or ()))


def _unknown(name: str, known: Iterable[str]) -> str:
    known = list(known)
    return f"{one_of(known)}, got {shown(name)}{suggestion(name, known)}"


# --- hyperparameters -------------------------------------------------------------------------------------------------

AT_LEAST_ONE = ("epochs", "batch_size")  # of which zero or less is always a slip


def _wrong_hyperparameters(
    given: Mapping[str, Any], supported: Mapping[str, Hyperparameter]
) -> Iterator[tuple[str, str]]:
    for name, value in given.items():
        if name not in supported:
            yield name, f"{one_of(supported)}, got {shown(name)}{_meant(name, supported)}"
        elif (message := _wrong_value(name, value, supported[name])) is not None:
            yield name, message


def _meant(name: str, supported: Mapping[str, Hyperparameter]) -> str:
    """The near name, or the one whose option on the command line is spelt so: lr is passed as --lr."""
    by_flag = [known for known, kind in supported.items() if kind.flag and kind.flag.strip("-") == name]
    if by_flag:
        return f"; did you mean {by_flag[0]!r}?"
    return suggestion(name, supported) or '; one that the program has no option for needs "flag": null in the catalog'


def _wrong_value(name: str, value: Any, kind: Hyperparameter) -> str | None:
    expected, types = {
        "int": ("a whole number", (int,)),
        "float": ("a number", (int, float)),
        "str": ("text in quotes", (str,)),
    }[kind.type]
    if isinstance(value, bool) or not isinstance(value, types):
        return f"expected {expected}, got {shown(value)}"
    if kind.choices is not None and value not in kind.choices:
        return f"{one_of(kind.choices)}, got {shown(value)}{suggestion(str(value), kind.choices)}"
    if name in AT_LEAST_ONE and isinstance(value, int | float) and value < 1:
        return f"expected at least 1, got {value}"
    return None


# --- command lines ---------------------------------------------------------------------------------------------------


def _of(values: Mapping[str, T], model: str, otherwise: T) -> T:
    """What a per-model value says of one model."""
    return values.get(model, values.get(EVERY, otherwise))


def _program(spec: Repository, model: str, cwd: Path) -> list[tuple[str, str]]:
    """The words that start a model, each as it is run here and as it stands in the catalog."""
    command = _of(spec.command, model, None)
    if command is not None:
        return [(filled(word, model), word) for word in command]
    assert spec.train_script is not None, "checked when the catalog was loaded"
    choice = [spec.model_flag, model] if spec.model_flag and model != "default" else []
    return [(os.path.normpath(cwd / spec.train_script), spec.train_script), *((word, word) for word in choice)]


def filled(word: str, model: str = "") -> str:
    """A word of a command with ``{python}`` and ``{model}`` filled in; other braces stay."""
    return word.replace("{python}", sys.executable).replace("{model}", model)


def _arguments(
    spec: Repository, supported: Mapping[str, Hyperparameter], hyperparameters: Mapping[str, Value]
) -> Iterator[str]:
    """The fixed arguments and the hyperparameters, in the catalog's order.

    Numbers are passed as exactly as they were written: the study passed six decimals and recorded all of them.
    """
    for words in spec.required_args.values():
        yield from shlex.split(words)
    for name, value in hyperparameters.items():
        flag = supported[name].flag
        if flag is not None:
            yield from (flag, value if isinstance(value, str) else repr(value))


# --- what is not there -----------------------------------------------------------------------------------------------

_PYTHON = re.compile(r"(pypy|python)\d*(\.\d+)?")
_SHELL = re.compile(r"(ba|da|k|z)?sh")


def what_is_missing(argv: list[str], cwd: Path, env: Mapping[str, str], root: Path) -> str | None:
    """Why a command cannot be started, as a sentence, or None. Paths are told relative to ``root`` where they can be.

    Looks for the folder, the program, and the script or module of a Python or shell command; starts nothing.
    """
    for folder in (root, cwd):
        if not _is(Path.is_dir, folder):
            return f"{_near(folder, root)} is not there yet"
    return _missing_program(argv[0], cwd, env, root) or _missing_script(argv, cwd, env, root)


def _missing_program(program: str, cwd: Path, env: Mapping[str, str], root: Path) -> str | None:
    if "/" not in program:
        found = shutil.which(program, path=env.get("PATH"))
        hint = "; write '{python}' for the interpreter that runs the harness" if _PYTHON.fullmatch(program) else ""
        return None if found else f"the program {program!r} is not on PATH{hint}"
    path = cwd / program
    if not _is(Path.is_file, path):
        return f"{_near(path, root)} is not there yet"
    return None if os.access(path, os.X_OK) else f"{_near(path, root)} is not executable; try chmod +x"


def _missing_script(argv: list[str], cwd: Path, env: Mapping[str, str], root: Path) -> str | None:
    kind, name = _script(argv)
    if kind == "module":
        return _missing_module(name, argv[0], cwd, env, root)
    if kind == "file" and not _is(Path.exists, cwd / name):
        return f"{_near(cwd / name, root)} is not there yet"
    return None


def _script(argv: list[str]) -> tuple[Literal["module", "file", "none"], str]:
    """The script that an interpreter's command line names."""
    interpreter = Path(argv[0]).name
    if not _PYTHON.fullmatch(interpreter) and not _SHELL.fullmatch(interpreter) and argv[0] != sys.executable:
        return "none", ""
    words = iter(argv[1:])
    for word in words:
        if word == "-m":
            return "module", next(words, "")
        if word in ("-c", "-", "-s", "-lc"):
            return "none", ""
        if word in ("-X", "-W", "-o"):
            next(words, None)
        elif not word.startswith("-"):
            return "file", word
    return "none", ""


def script_of(argv: list[str]) -> str:
    """What a command is called after: its script, else its module, else its program; without folders and suffix."""
    kind, name = _script(argv)
    return name.rpartition(".")[2] if kind == "module" else Path(name if kind == "file" else argv[0]).stem


def _missing_module(name: str, interpreter: str, cwd: Path, env: Mapping[str, str], root: Path) -> str | None:
    """Why ``-m name`` would not be found, where that can be known without running the interpreter."""
    parts = name.split(".")
    here = cwd.joinpath(*parts)
    if _is(Path.is_file, Path(f"{here}.py")) or _is(Path.is_file, here / "__main__.py"):
        return None
    if _is(Path.is_dir, cwd / parts[0]) or _is(Path.is_file, cwd / f"{parts[0]}.py"):
        return f"{_near(Path(f'{here}.py'), root)} is not there yet"
    if interpreter != sys.executable or "PYTHONPATH" in env:
        return None
    with contextlib.suppress(ImportError, ValueError):
        if importlib.util.find_spec(parts[0]) is not None:
            return None
    return f"the module {name!r} is not installed"


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    """`Path.is_file` and its like without their one exception: a name too long for the file system is not there."""
    try:
        return kind(path)
    except OSError:
        return False


def _near(path: Path, root: Path) -> str:
    return os.path.relpath(path, root) if path.is_relative_to(root) and path != root else str(path)
