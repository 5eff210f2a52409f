# SPDX-License-Identifier: Apache-2.0
"""A group with something changed in one of its trainings: a hyperparameter, an option, a variable, or the model.

Pure: it makes the changed group and the settings that say so; what comes of it is for others to run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from colocate.errors import PlanError
from colocate.plan.catalog import Catalog, Training
from colocate.plan.catalog_schema import Value
from colocate.plan.plan import Group
from colocate.plan.roles import Role
from colocate.plan.validation import Mistakes


@dataclass(frozen=True)
class Override:
    """A change of one training of a group.

    Args:
        role: Which member.
        hyperparameters: Values to set, by the catalog's names.
        options: Values to set of a command of one's own, by the option, such as ``--batch-size``.
        model: Another model of the same repository, or None. It gets the hyperparameters that it knows.
        env: Variables to add.
    """

    role: Role
    hyperparameters: Mapping[str, Value] = field(default_factory=dict)
    options: Mapping[str, Value] = field(default_factory=dict)
    model: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)


def varied(group: Group, override: Override, catalog: Catalog | None) -> Group:
    """The group with the change made; the catalog makes the new command lines of its trainings.

    Raises:
        PlanError: the training does not know what is to be changed, or the group has no such member.
    """
    training = group.training(override.role)
    if training is None:
        raise PlanError(f"{group.id}: expected a {override.role}, found none")
    changed = replace(_of_catalog(training, override, catalog), env={**training.env, **override.env})
    for option, value in override.options.items():
        changed = replace(changed, argv=with_flag(changed.argv, option, value))
    if override.role == "foreground":
        return replace(group, foreground=changed)
    return replace(group, background=changed)


def rewritten(entry: Mapping[str, Any], override: Override, group: Group) -> dict[str, Any]:
    """The member that a plan's entry has after the change: every other key stays as it was, of ``env`` the names.

    Args:
        entry: The group as it stands in the plan.
        override: What was changed.
        group: The changed group, which knows what its model takes.
    """
    member: dict[str, Any] = dict(entry.get(override.role) or _own_member(entry))
    training = group.training(override.role) or group.foreground
    if override.hyperparameters or override.model is not None:
        given = {**member.get("hyperparameters", {}), **override.hyperparameters}
        member["hyperparameters"] = {name: value for name, value in given.items() if name in training.hyperparameters}
    if override.model is not None:
        member["model"] = override.model
    if override.env or "env" in member:  # its own values may be secrets, and this goes into reports
        member["env"] = {**dict.fromkeys(member.get("env", {})), **override.env}
    for option, value in override.options.items():
        member["command"] = list(with_flag(member["command"], option, value))
    return member


def _own_member(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The one training of an entry of mode default, which stands in the entry itself."""
    return {key: entry[key] for key in ("repo", "model", "hyperparameters", "command", "name", "env") if key in entry}


def solo_group(training: Training, like: Group) -> Group:
    """A training by itself, under the limits of a group."""
    return replace(like, foreground=training, background=None, expected_bytes=None, tolerance_bytes=None, runs=1)


def _of_catalog(training: Training, override: Override, catalog: Catalog | None) -> Training:
    if not override.hyperparameters and override.model is None:
        return training
    if training.repository is None or training.model is None or catalog is None:
        wanted = ", ".join(override.hyperparameters) or "model"
        raise PlanError(f"{wanted}: expected a training of the catalog, {training.name} is a command; name its option")
    mistakes = Mistakes(training.name)
    model = override.model or training.model
    own: dict[str, Any] = dict(training.hyperparameters)
    if override.model is not None:  # what the other model has no hyperparameter for would be nobody's
        own = {name: value for name, value in own.items() if name in catalog.supported(training.repository, model)}
    found = catalog.training(training.repository, model, {**own, **override.hyperparameters}, (), mistakes)
    mistakes.raise_if_any()
    assert found is not None
    return found


def with_flag(argv: Sequence[str], flag: str, value: Value) -> tuple[str, ...]:
    """A command line in which an option has this value: replaced where it stands, else added."""
    words, replaced = list(argv), False
    for place, word in enumerate(words):
        if word == flag and place + 1 < len(words):
            words[place + 1], replaced = str(value), True
        elif word.startswith(f"{flag}="):
            words[place], replaced = f"{flag}={value}", True
    return tuple(words if replaced else [*words, flag, str(value)])


def option_text(argv: Sequence[str], option: str) -> str | None:
    """Return the last value that a command line gives to an option, or None without the option."""
    text: str | None = None
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word == option:
            text = following
        elif word.startswith(f"{option}="):
            text = word.removeprefix(f"{option}=")
    return text
