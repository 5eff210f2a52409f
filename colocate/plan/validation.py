# SPDX-License-Identifier: Apache-2.0
"""Check the objects of a settings file, and collect its mistakes with their places.

Knows neither plans nor catalogs: `colocate.plan.plan` and `colocate.plan.catalog` say what the keys mean.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema

from colocate.errors import PlanError
from colocate.units import parse_size, to_mib

MAX_MISTAKES = 50  # more would push the first ones off the screen
NEAR = 0.75  # difflib's ratio above which one word counts as a misspelling of another; 'batchsize' and 'bs' differ

MUTATION = (
    'the study\'s mode mutation draws new hyperparameters for every run and is not supported; write "mode": "default"'
    " and the hyperparameters to use"
)
SAME = 3  # so many places with the same mistake are told one by one; more are one sentence

Place = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


class Mistakes:
    """The mistakes of one file, one per place."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._lines: dict[Place, str] = {}
        self._others: list[str] = []

    def add(self, place: Place, message: str) -> None:
        """Note what is wrong at a place of the document; the first mistake of a place is kept."""
        self._lines.setdefault(place, message)

    def include(self, error: PlanError) -> None:
        """Count the mistakes of another file, to which this one refers, as well."""
        self._others.extend(error.mistakes)

    def raise_if_any(self) -> None:
        """Raise all mistakes together.

        Raises:
            PlanError: at least one mistake was added.
        """
        lines = [*self._others, *self._told()]
        if len(lines) > MAX_MISTAKES:
            lines[MAX_MISTAKES:] = [f"{self.file}: {len(lines) - MAX_MISTAKES} more mistakes are not shown"]
        if lines:
            raise PlanError(*lines)

    def _told(self) -> Iterator[str]:
        """A line for every mistake, in the order of the file; the same mistake in many places is one line."""
        places: dict[str, list[Place]] = {}
        for place in sorted(self._lines, key=_order):
            places.setdefault(_kind(self._lines[place]), []).append(place)
        for place in sorted(self._lines, key=_order):
            message, same = self._lines[place], places[_kind(self._lines[place])]
            told_once = len(same) > SAME or (len(same) > 1 and MUTATION in message)
            if not told_once:
                yield f"{self.file}: {json_path(place)}: {message}"
            elif place == same[0]:
                more = f"the same in {len(same) - 1} more places, the last {json_path(same[-1])}"
                yield f"{self.file}: {json_path(place)}: {message} ({more})"


def _kind(message: str) -> str:
    """What makes two mistakes the same: the whole message; of mode mutation its explanation."""
    return MUTATION if MUTATION in message else message


def _order(place: Place) -> list[tuple[bool, str | int]]:
    """A key to sort places by: all of one entry together, the entries by number."""
    return [(isinstance(step, str), step) for step in place]


def json_path(place: Place) -> str:
    """A place as the path that editors understand: ``$.experiments[3].foreground.model``."""
    return "$" + "".join(_step(step) for step in place)


def _step(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if re.fullmatch(r"[\w-]+", step) else f"[{shown(step)}]"


def shown(value: object) -> str:
    """A value of a settings file for an error message: short, on one line, in JSON's words."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**60 else "a number of more than 60 digits"
    return text if len(text) <= 80 else f"{text[:76]}...'"


def one_of(names: Iterable[str]) -> str:
    """``expected one of 'a', 'b'``, or the honest answer when there is one or none."""
    listed = [repr(name) for name in names]
    if len(listed) < 2:
        return f"expected {listed[0]}" if listed else "expected nothing here"
    return f"expected one of {', '.join(listed)}"


def unknown(found: Any, known: Iterable[str]) -> str:
    """Say which words are expected in place of an unknown one, and which may be meant."""
    known = list(known)
    return f"{one_of(known)}, got {shown(found)}{suggestion(str(found), known)}"


def suggestion(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'model'?`` when a known word is near, or one is the beginning of the other; else nothing."""
    names = {_plain(name): name for name in known}
    plain = _plain(word)
    begins = [name for name in names if min(len(name), len(plain)) >= 4 and plain.startswith(name[: len(plain)])]
    near = difflib.get_close_matches(plain, names, n=1, cutoff=NEAR) or begins
    return f"; did you mean {names[near[0]]!r}?" if near else ""


def _plain(word: str) -> str:
    """A word without what people vary: case, hyphens, underscores."""
    return re.sub(r"[\s_-]", "", word.lower())[:100]


# --- keys ------------------------------------------------------------------------------------------------------------


class Settings(BaseModel):
    """One object of a settings file: strict types, frozen, unknown keys refused unless they are free text."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    ignored_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys that other tools read and we do not; any value is accepted under them."""

    @classmethod
    @cache
    def known_keys(cls) -> list[str]:
        """The keys that mean something, as they are written in the file."""
        return [field.alias or name for name, field in cls.model_fields.items()]

    @model_validator(mode="before")
    @classmethod
    def _without_free_text(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = cls.known_keys()
        return {key: child for key, child in value.items() if key in known or not cls._is_free_text(key, child)}

    @classmethod
    def _is_free_text(cls, key: str, value: object) -> bool:
        """Say whether a key is a note (not a setting that would silently be ignored).

        That is: it begins with an underscore, ends as notes do, or is one that the study's tools read; or it holds
        text, is not nearly a known key, and its text is no size ("7500MB" under an unknown key is a lost limit).
        """
        if key.startswith("_") or key.endswith(("_note", "_notes", "_comment")) or key in cls.ignored_keys:
            return True
        return isinstance(value, str) and not _is_size(value) and not suggestion(key, cls.known_keys())

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core))
        others = "|".join(sorted(re.escape(key) for key in cls.ignored_keys))
        schema["patternProperties"] = {"^_": {}, "_(note|notes|comment)$": {}, f"^({others})$": {}}
        schema["additionalProperties"] = {"type": "string", "description": "free text"}
        return schema


FREE_TEXT = frozenset({"$comment", "comment", "comments", "description", "note", "notes", "version"})


def _is_size(text: str) -> bool:
    try:
        parse_size(text)
    except (ValueError, OverflowError):
        return False
    return True


def validated(model: type[Model], value: Any, place: Place, mistakes: Mistakes | None) -> Model | None:
    """A value as a model, or None with what is wrong with it added to ``mistakes``."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        for line in error.errors(include_url=False) if mistakes else ():
            where = tuple(step for step in line["loc"] if step not in (EVERY, "[key]"))
            mistakes.add((*place, *where), _described(line, model))  # type: ignore[union-attr]
        return None


_EXPECTED = {
    "missing": "expected this key, it is missing",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "bool_type": "expected true or false",
    "string_type": "expected text in quotes",
    "list_type": "expected a list",
    "dict_type": "expected an object",
    "model_type": "expected an object",
    "model_attributes_type": "expected an object",
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected at least {ge}",
    "less_than": "expected less than {lt}",
    "less_than_equal": "expected at most {le}",
    "too_short": "expected a list of at least {min_length}, got one of {actual_length}",
    "string_too_long": "expected at most {max_length} characters",
    "literal_error": "expected {expected}",
}


def _described(line: Any, model: type[BaseModel]) -> str:
    """Translate one pydantic error into a mistake with its place."""
    kind, found, context = line["type"], line["input"], line.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        return _unknown_key(str(line["loc"][-1]), _owner(model, line["loc"]))
    expected = _EXPECTED.get(kind, f"expected what fits: {line['msg']}").format(**context)
    if kind in ("missing", "too_short"):
        return expected
    near = suggestion(found, re.findall(r"'([^']*)'", expected)) if isinstance(found, str) else ""
    return f"{expected}, got {shown(found)}{near}"


def _unknown_key(key: str, owner: type[Settings]) -> str:
    known = owner.known_keys()
    if _plain(key).startswith("mutat"):
        return f"expected no key {shown(key)}; {MUTATION}"
    hint = suggestion(key, known) or "; a note goes under 'comment' or a key that begins with '_'"
    return f"{one_of(known) if len(known) <= 13 else 'expected a key that we know'}, got the key {shown(key)}{hint}"


def _owner(model: type[BaseModel], place: Place) -> type[Settings]:
    """The model whose object holds the last key of a place: found by the names of the keys above it."""
    for step in place[:-1]:
        inner = _models_within(model.model_fields, step)
        model = inner or model
    assert issubclass(model, Settings)
    return model


def _models_within(fields: Any, key: str | int) -> type[Settings] | None:
    for name, field in fields.items():
        if key == (field.alias or name):
            return next(_models_of(field.annotation), None)
    return None


def _models_of(annotation: Any) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_of(argument)


# --- values that plans and catalogs have in common -------------------------------------------------------------------

EVERY = "*"  # the entry of a per-model value that stands for all models; never shown in a path


def checked_size(value: Any) -> int:
    """The bytes that a value of a settings file means.

    Raises:
        ValueError: it is no size; the message says what was expected and what was found.
    """
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError(f"expected a size such as '7500MB' or '8GB', got {shown(value)}")
    try:
        return parse_size(value)
    except OverflowError:
        raise ValueError(f"expected a size such as '7500MB' or '8GB', got {shown(value)}") from None


def size_text(num_bytes: int) -> str:
    """A size as plans write it, exactly: ``"7500MB"``, or bytes where it is no whole number of MiB."""
    mib = to_mib(num_bytes)
    return f"{mib:.0f}MB" if mib.is_integer() else f"{num_bytes}B"


_SIZE_PATTERN = r"^\s*\d+(\.\d+)?\s*([MmGg]?[Ii]?[Bb])?\s*$"
_SIZE_SCHEMA = {"anyOf": [{"type": "string", "pattern": _SIZE_PATTERN}, {"type": "number", "minimum": 0}]}

Size = Annotated[
    int,
    BeforeValidator(checked_size),
    PlainSerializer(size_text),
    WithJsonSchema({**_SIZE_SCHEMA, "examples": ["7500MB", "8GB"]}),
]
"""Bytes, written as ``"7500MB"``, ``"8GB"`` or a bare number of MiB. MB means MiB, as in nvidia-smi."""


def matching(pattern: str, expected: str) -> Callable[[str], str]:
    """A validator of names: the whole text matches, or the error says what was expected."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError(f"expected {expected}, got {shown(value)}")
        return value

    return check


SAFE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_NAME_WORDS = "a name of letters, digits, '.', '_' and '-' that begins with a letter or digit"
Name = Annotated[
    str,
    AfterValidator(matching(SAFE_NAME, _NAME_WORDS)),
    Field(json_schema_extra={"pattern": f"^{SAFE_NAME}$"}),
]
"""A name that is also a safe file name: results are kept in folders that bear it."""


def _checked_environment(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise ValueError(f"expected names of environment variables, got {shown(name)}")
        if name.startswith("COLOCATE_"):
            raise ValueError(f"expected names without COLOCATE_, which the harness sets itself, got {name!r}")
    return value


Environment = Annotated[dict[str, str], AfterValidator(_checked_environment)]
