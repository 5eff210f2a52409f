# SPDX-License-Identifier: Apache-2.0
"""The file format of a plan, as pydantic types: the study's, with a few keys of ours.

What a file means, and what of it cannot be run, is `colocate.plan.plan`'s business.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from colocate.plan.catalog_schema import READY_TIMEOUT_S, Metric, Pattern, Words
from colocate.plan.gpu_models import checked_wish
from colocate.plan.validation import (
    FREE_TEXT,
    MUTATION,
    Environment,
    Name,
    Settings,
    Size,
    matching,
    one_of,
    suggestion,
    unknown,
)
from colocate.process import MAX_PROCESSES
from colocate.units import MIB

# What -k reads as an operator, and the marks of pytest and of this project: a tier becomes a mark.
_RESERVED = (
    *("and", "or", "not", "true", "false", "none", "slow", "gpu"),
    *("skip", "skipif", "xfail", "parametrize", "usefixtures", "filterwarnings"),
)
_ID = r"[a-z][a-z0-9_-]{0,99}"

MODES = ("parallel", "default")


def _not_reserved(value: str) -> str:
    if value in _RESERVED:
        raise ValueError(f"expected a word that pytest does not use itself, got {value!r}")
    return value


Identifier = Annotated[
    str,
    AfterValidator(
        matching(_ID, "lower-case letters, digits, '_' and '-' that begin with a letter, such as 'group01'")
    ),
    AfterValidator(_not_reserved),
    Field(json_schema_extra={"pattern": f"^{_ID}$"}),
]


def _mode_among(*modes: str) -> tuple[AfterValidator, Field]:  # type: ignore[valid-type]
    def check(value: str | None) -> str | None:
        if value is not None and value not in modes:
            # The study reads every mode that it does not know as mutation; only a misspelt one means something else.
            misspelt = suggestion(value, modes) and not value.lower().startswith(("non", "not", "un", "no"))
            raise ValueError(unknown(value, modes) if misspelt else f"{one_of(modes)}, got {value!r}; {MUTATION}")
        return value

    return AfterValidator(check), Field(json_schema_extra={"enum": [*modes, None]})


class Limits(Settings):
    """The limits of a plan for every group. Sizes are bytes, times seconds."""

    ignored_keys: ClassVar = FREE_TEXT
    gpu_bytes: Size = Field(default=8192 * MIB, alias="gpu", gt=0, description="memory of the GPU that is planned for")
    peak_bytes: Size = Field(default=7500 * MIB, alias="peak", gt=0, description="the GPU's use must stay below this")
    success_rate: float = Field(default=0.95, ge=0, le=1, description="share of the groups that must be feasible")
    overlap: float = Field(
        default=0.8, ge=0, le=1, description="share of the foreground's time with a training beside it"
    )
    settle_s: float = Field(default=60.0, gt=0, description="time for the GPU to return to its baseline")
    stall_s: float = Field(default=300.0, gt=0, description="time without any sign of progress that ends a training")
    epoch_timeout_s: float = Field(default=7200.0, gt=0, description="time after which a foreground is ended anyway")
    max_processes: int = Field(
        default=MAX_PROCESSES, ge=1, description="processes of one training at once; more are ended as a fork bomb"
    )
    longest_gap_s: float = Field(default=2.0, gt=0, description="longest time without a reading of the GPU's memory")


class Tier(Settings):
    """A class of groups by the memory they are expected to need."""

    ignored_keys: ClassVar = FREE_TEXT
    expected_success: float = Field(ge=0, le=1)


def _tier_of_number(value: Any) -> Any:
    return value if isinstance(value, dict | Tier) else {"expected_success": value}


_RATE: dict[str, Any] = {"type": "number", "minimum": 0, "maximum": 1}
_TIER_SCHEMA = {"anyOf": [_RATE, {"type": "object", "properties": {"expected_success": _RATE}}]}
TIERS = {"ultra-low": 1.0, "low": 1.0, "medium": 0.95, "high": 0.8}  # as in the study's design of the twelve groups


class TrainingSpec(Settings):
    """One training of a group: a repo and a model of the catalog, or a command of one's own."""

    ignored_keys: ClassVar = FREE_TEXT
    repo: str | None = None
    model: str | None = None
    mode: Annotated[str | None, *_mode_among("default")] = None
    hyperparameters: dict[str, Annotated[Any, WithJsonSchema({"type": ["number", "string"]})]] = Field(
        default_factory=dict
    )
    mutate: Any = Field(default=None, description="the study's; ignored where mode is default")
    runs_per_config: int | None = Field(default=None, ge=1, le=1000)
    command: Words | None = Field(
        default=None, description="program and arguments; {python}: the harness's interpreter"
    )
    name: Name | None = Field(default=None, description="default: the name of the script or program")
    cwd: str | None = Field(default=None, description="where the command starts, relative to the plan's folder")
    env: Environment = Field(default_factory=dict, description="added to the environment")
    uses_gpu: bool = True
    repeat_args: list[str] = Field(
        default_factory=list, description="added to a background, so that it repeats its epochs"
    )
    dry_run_args: list[str] = Field(default_factory=list, description="added on the virtual GPU")
    ready_timeout_s: float = Field(default=READY_TIMEOUT_S, gt=0)
    progress_pattern: Pattern | None = None
    metric_patterns: dict[str, Metric] = Field(default_factory=dict)


KEYS_OF_COMMANDS = (
    *("command", "name", "cwd", "env", "uses_gpu", "repeat_args", "dry_run_args"),
    *("ready_timeout_s", "progress_pattern", "metric_patterns"),
)
_STUDY_ENTRY = frozenset({"experiment_id", "experiment_type", "expected_performance"})


class Entry(TrainingSpec):
    """One group: the two trainings of mode parallel, or the one training of mode default in the entry itself."""

    ignored_keys: ClassVar = FREE_TEXT - {"note"} | _STUDY_ENTRY
    mode: Annotated[str | None, *_mode_among(*MODES)] = None
    foreground: TrainingSpec | None = None
    background: TrainingSpec | None = None
    id: Identifier | None = Field(default=None, description="default: group01, group02 ... by position")
    tier: Identifier | None = None
    expected_bytes: Size | None = Field(default=None, alias="expected_memory", description="for the report, no limit")
    tolerance_bytes: Size | None = Field(
        default=None, alias="tolerance", ge=0, description="the plan's; makes a budget of expected_memory"
    )
    risk: str | None = Field(default=None, max_length=200)
    limit_bytes: Size | None = Field(default=None, alias="limit", gt=0, description="instead of the plan's peak")
    gpu: Annotated[str, AfterValidator(checked_wish)] | None = Field(
        default=None, description="the GPU that the group is for, by size or name; it is run on no other"
    )
    expected_minutes: float | None = Field(
        default=None, gt=0, description="an estimate; the longest group starts first"
    )
    note: str | None = None


_STUDY_PLAN = """
use_deduplication historical_csvs cleanup_gpu_memory cleanup_between_experiments created creation_date updated purpose
estimated_experiments estimated_duration_hours estimated_duration_minutes estimated_time target_completion
target_experiments target_runtime_hours expected_experiments expected_completion expected_results completion_status
execution_summary merge_info session_name base_results_dir validation_criteria rationale deduplication
"""


class PlanFile(Settings):
    """A plan: the groups of trainings that are to share one GPU, and what is demanded of them."""

    ignored_keys: ClassVar = FREE_TEXT - {"description"} | frozenset(_STUDY_PLAN.split())
    schema_: str | None = Field(default=None, alias="$schema")
    experiment_name: str = "unnamed"
    description: str = ""
    governor: Literal["performance", "powersave", "ondemand", "conservative", "schedutil"] | None = None
    runs_per_config: int = Field(default=1, ge=1, le=1000)
    max_retries: int = Field(default=2, ge=0, le=100)
    mode: Annotated[str | None, *_mode_among(*MODES, "mixed")] = None
    catalog: str | None = Field(default=None, description="the models catalog, relative to this file's folder")
    limits: Limits = Field(default=Limits())
    tolerance_bytes: Size | None = Field(
        default=None,
        alias="tolerance",
        ge=0,
        description="a group whose peak is above expected_memory by more than this is over budget; no verdict changes",
    )
    tiers: dict[Identifier, Annotated[Tier, BeforeValidator(_tier_of_number), WithJsonSchema(_TIER_SCHEMA)]] = Field(
        default={name: Tier(expected_success=rate) for name, rate in TIERS.items()}
    )
    experiments: list[Entry] = Field(min_length=1)
    not_run: list[Entry] = Field(
        default=[], description="entries that are kept and not run, such as pairs that cannot fit; ours writes them"
    )
