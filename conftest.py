"""pytest's options, hooks and fixtures of this checkout; no logic."""

pytest_plugins = (
    "colocate.plugin",
    "colocate.plugin.short_options",
    "colocate.fixtures.run_directory",
    "colocate.fixtures.device",
    "colocate.fixtures.monitor",
    "colocate.fixtures.background",
    "colocate.fixtures.foreground",
)
