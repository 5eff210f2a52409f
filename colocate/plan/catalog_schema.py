# SPDX-License-Identifier: Apache-2.0
"""The file format of a models catalog: one pydantic class per object of the file.

The file format is that of the study's models_config.json and a few keys of ours. What it means is
`colocate.plan.catalog`'s business.
"""

import re
import shlex
import warnings
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from colocate.plan.validation import EVERY, FREE_TEXT, Environment, Mistakes, Name, Place, Settings, shown, unknown

READY_TIMEOUT_S = 300.0
"""The slowest of the study's programs works 45 s on the CPU first; then a factor for a slow disk."""

Value = int | float | str
T = TypeVar("T")


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
    """Accept one value for all models of a repository, or an object with one per model (``"*"`` for the others)."""
    either = {"anyOf": [schema, {"type": "object", "additionalProperties": schema}]}
    return BeforeValidator(_for_every_model), WithJsonSchema(either)


Pattern = Annotated[str, AfterValidator(checked_pattern), Field(json_schema_extra={"format": "regex"})]
Metric = Annotated[str, AfterValidator(_checked_metric), Field(json_schema_extra={"format": "regex"})]
Words = Annotated[list[str], Field(min_length=1)]
_WORDS = {"type": "array", "items": {"type": "string"}}
Scalar = Annotated[Any, WithJsonSchema({"type": ["number", "string", "null"]})]


class Hyperparameter(Settings):
    """The way to pass one hyperparameter to the programs of a repository."""

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
        """Return the default of a model's program, or None if it is not in the catalog."""
        value: Value | None = of_model(self.program_default, model, None)
        return value


class Metrics(Settings):
    """The patterns that find the results in the log of a training."""

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
    dry_run_args: Annotated[dict[str, list[str]], *_per_model(_WORDS)] = Field(default={})
    ready_timeout_s: Annotated[
        dict[str, Annotated[float, Field(gt=0)]], *_per_model({"type": "number", "exclusiveMinimum": 0})
    ] = Field(default={})
    progress_pattern: Annotated[dict[str, Pattern], *_per_model({"type": "string"})] = Field(default={})
    env: Environment = Field(default={})


class CatalogFile(Settings):
    """The settings file that says how the trainings of a plan are started."""

    ignored_keys: ClassVar = FREE_TEXT
    schema_: str | None = Field(default=None, alias="$schema")
    root: str = Field("..", description="where the repositories' paths start, relative to this file's folder")
    models: dict[Name, Repository]


def of_model(values: Mapping[str, T], model: str, otherwise: T) -> T:
    """Return the value of a per-model setting for one model."""
    return values.get(model, values.get(EVERY, otherwise))


def check(document: CatalogFile, mistakes: Mistakes) -> None:
    """Check what the types alone cannot check in a catalog."""
    for name, spec in document.models.items():
        place: Place = ("models", name)
        if not spec.command and spec.train_script is None:
            mistakes.add(place, "expected command or train_script, got neither")
        for key, model in _models_named(spec):
            if model not in (*spec.models, EVERY):
                mistakes.add((*place, *key), unknown(model, spec.models))
        if spec.command and spec.train_script is None and EVERY not in spec.command:
            for model in set(spec.models) - set(spec.command):
                mistakes.add((*place, "command", model), "expected a command for every model, there is none for it")


def _models_named(spec: Repository) -> Iterator[tuple[Place, str]]:
    """Every place of a repository's entry that names a model."""
    for key in ("command", "uses_gpu", "repeat_args", "dry_run_args", "ready_timeout_s"):
        yield from (((key, model), model) for model in getattr(spec, key))
    yield from ((("progress_pattern", model), model) for model in spec.progress_pattern)
    for name, kind in spec.supported_hyperparams.items():
        place = ("supported_hyperparams", name, "models")
        yield from (((*place, index), model) for index, model in enumerate(kind.models or ()))
