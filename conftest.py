"""pytest's options, hooks and fixtures; no logic."""

pytest_plugins = ("colocate.plugin",)
