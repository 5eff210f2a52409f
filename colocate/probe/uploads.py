# SPDX-License-Identifier: Apache-2.0
"""Experiment trackers and model hubs of a program that only seems to train: nothing leaves the machine.

Trackers are switched off by their own variables, and where a program insists, by replacing the function that begins a
run. Standard library only.
"""

import os
from collections.abc import Callable
from typing import Any

from .imports import AfterImport
from .overlay import redirected

OFF = {
    "WANDB_MODE": "disabled",
    "WANDB_SILENT": "true",
    "COMET_MODE": "disabled",
    "COMET_DISABLE_AUTO_LOGGING": "1",
    "NEPTUNE_MODE": "debug",
    "CLEARML_OFFLINE_MODE": "1",
    "SWANLAB_MODE": "disabled",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}

# What changes something on the hub; downloads go on.
HUB = (
    "create_repo", "create_commit", "create_branch", "create_tag", "create_pull_request", "create_discussion",
    "upload_file", "upload_folder", "upload_large_folder", "preupload_lfs_files", "delete_repo", "delete_file",
    "delete_files", "delete_folder", "delete_branch", "delete_tag", "move_repo", "update_repo_settings",
    "update_repo_visibility", "super_squash_history", "add_space_secret", "add_space_variable", "create_collection",
)  # fmt: skip


def install(watcher: AfterImport, scratch: str) -> None:
    """Switch them off for this process and those that it starts."""
    os.environ.update(OFF)
    os.environ["MLFLOW_TRACKING_URI"] = os.environ["MLFLOW_REGISTRY_URI"] = f"file://{scratch}/mlruns"
    watcher.when("wandb", _disable_wandb)
    watcher.when("mlflow", _keep_mlflow_here)
    watcher.when("huggingface_hub.hf_api", _keep_off_the_hub)
    watcher.when("sqlite3.dbapi2", _redirect_databases)
    watcher.when("h5py", _redirect_hdf5)
    watcher.when("cv2", _redirect_images)


class Nothing:
    """Stands for whatever a service would have answered: has every attribute, and says that all is done."""

    def __init__(self, text: str = "") -> None:
        self._text = text

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing(self._text)

    def __call__(self, *args: Any, **options: Any) -> "Nothing":
        """Whatever is asked."""
        return self

    def __str__(self) -> str:
        return self._text

    def __fspath__(self) -> str:
        return self._text

    def __bool__(self) -> bool:
        return True

    def done(self) -> bool:
        """As of a future."""
        return True

    def result(self, timeout: float | None = None) -> "Nothing":
        """As of a future."""
        return self


def _disable_wandb(wandb: Any) -> None:
    begin = wandb.init

    def begin_disabled(*args: Any, **options: Any) -> Any:
        return begin(*args, **{**options, "mode": "disabled"})

    wandb.init = begin_disabled
    wandb.login = lambda *args, **options: True


def _keep_mlflow_here(mlflow: Any) -> None:
    for name in ("set_tracking_uri", "set_registry_uri"):
        if hasattr(mlflow, name):
            setattr(mlflow, name, lambda *args, **options: None)


def _keep_off_the_hub(hub: Any) -> None:
    def refuse(*args: Any, **options: Any) -> Nothing:
        repository = options.get("repo_id") or next((one for one in args if isinstance(one, str)), "")
        found = Nothing(f"https://huggingface.co/{repository}")
        found.repo_id = repository  # type: ignore[attr-defined]
        return found

    for name in HUB:
        if hasattr(hub.HfApi, name):
            setattr(hub.HfApi, name, _as_method(refuse))
        if hasattr(hub, name):
            setattr(hub, name, refuse)


def _as_method(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *args, **options: function(*args, **options)


# --- libraries that open files by themselves --------------------------------------------------------------------------


def _redirect_databases(module: Any) -> None:
    connect = module.connect

    def connect_here(database: Any, *args: Any, **options: Any) -> Any:
        name = os.fspath(database) if isinstance(database, os.PathLike) else database
        in_memory = isinstance(name, str) and (name in ("", ":memory:") or name.startswith("file:"))
        return connect(database if in_memory else redirected(database, writes=True, keep=True), *args, **options)

    module.connect = connect_here


def _redirect_hdf5(module: Any) -> None:
    begin = module.File.__init__

    def open_here(self: Any, name: Any, mode: str = "r", *args: Any, **options: Any) -> None:
        writes = mode != "r"
        begin(self, redirected(name, writes=writes, keep=mode in ("r+", "a")), mode, *args, **options)

    module.File.__init__ = open_here


def _redirect_images(module: Any) -> None:
    write, read = module.imwrite, module.imread
    module.imwrite = lambda name, *args, **options: write(redirected(name, writes=True), *args, **options)
    module.imread = lambda name, *args, **options: read(redirected(name), *args, **options)
