# SPDX-License-Identifier: Apache-2.0
"""The models catalog: repository, model and hyperparameters become a training with a command line.

What a file may contain stands in `colocate.plan.catalog_schema`. Knows no plan and starts nothing.
"""

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from colocate.files import shipped
from colocate.plan.catalog_schema import (
    READY_TIMEOUT_S,
    CatalogFile,
    Hyperparameter,
    Repository,
    Value,
    check,
    of_model,
)
from colocate.plan.executables import filled, what_is_missing
from colocate.plan.reading import display_name, read_json
from colocate.plan.validation import (
    Mistakes,
    Place,
    one_of,
    shown,
    suggestion,
    unknown,
    validated,
)


@dataclass(frozen=True)
class Training:
    """A program with its arguments, ready to be run once.

    ``repeat_args`` are added to ``argv`` when it runs as the background (so that it repeats its epochs in one
    process), ``dry_run_args`` when it is only dry-run on the virtual GPU. ``unpassed`` are the hyperparameters
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
    dry_run_args: tuple[str, ...] = ()
    ready_timeout_s: float = READY_TIMEOUT_S
    progress_pattern: str | None = None
    metric_patterns: Mapping[str, str] = field(default_factory=dict)
    unpassed: tuple[str, ...] = ()
    missing: str | None = None
    written: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings that decide how it runs, independent of where its files lie."""
        argv = [self.written.get(word, word) for word in self.argv]
        known = asdict(self) | {"argv": argv, "cwd": self.written.get(str(self.cwd), str(self.cwd))}
        return {name: value for name, value in known.items() if name not in ("missing", "written")}

    def command(self, *, repeat: bool = False, dry_run: bool = False) -> list[str]:
        """The whole command line for one of the two roles, on a real GPU or on the virtual one."""
        return [*self.argv, *(self.repeat_args if repeat else ()), *(self.dry_run_args if dry_run else ())]


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
            mistakes.add((*place, "repo"), unknown(repository, self.repositories))
            return None
        if model not in spec.models:
            mistakes.add((*place, "model"), unknown(model, spec.models))
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
            uses_gpu=of_model(spec.uses_gpu, model, True),
            repeat_args=tuple(of_model(spec.repeat_args, model, [])),
            dry_run_args=tuple(of_model(spec.dry_run_args, model, [])),
            ready_timeout_s=of_model(spec.ready_timeout_s, model, READY_TIMEOUT_S),
            progress_pattern=of_model(spec.progress_pattern, model, None),
            metric_patterns=dict(spec.performance_metrics.log_patterns),
            unpassed=tuple(name for name in passed if supported[name].flag is None),
            missing=what_is_missing(argv, cwd, spec.env, self.root),
            written={**dict(program), str(cwd): spec.path},
        )


def default_catalog(plan: Path) -> Path:
    """The catalog of a plan that names none: ``models.json`` beside it, else the one in our own settings folder."""
    beside = plan.parent / "models.json"
    return beside if beside.is_file() else shipped("settings/models.json")


def load_catalog(path: Path | str) -> Catalog:
    """The catalog in a file.

    Raises:
        PlanError: the file cannot be read or contains mistakes; all of them, one per line.
    """
    path = Path(path)
    mistakes = Mistakes(display_name(path))
    document = validated(CatalogFile, read_json(path, mistakes), (), mistakes)
    if document is not None:
        check(document, mistakes)
    mistakes.raise_if_any()
    assert document is not None
    root = Path(os.path.normpath(Path.cwd() / path.parent / document.root))
    return Catalog(path=path, root=root, repositories=dict(document.models))


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
        return unknown(value, kind.choices)
    if name in AT_LEAST_ONE and isinstance(value, int | float) and value < 1:
        return f"expected at least 1, got {value}"
    return None


# --- command lines ---------------------------------------------------------------------------------------------------


def _program(spec: Repository, model: str, cwd: Path) -> list[tuple[str, str]]:
    """The words that start a model, each as it is run here and as it stands in the catalog."""
    command = of_model(spec.command, model, None)
    if command is not None:
        return [(filled(word, model), word) for word in command]
    assert spec.train_script is not None, "checked when the catalog was loaded"
    choice = [spec.model_flag, model] if spec.model_flag and model != "default" else []
    return [(os.path.normpath(cwd / spec.train_script), spec.train_script), *((word, word) for word in choice)]


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
