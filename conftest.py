"""pytest's options, hooks and fixtures; no logic."""

pytest_plugins = (
    "colocate.plugin",
    "fixtures.run_directory",
    "fixtures.device",
    "fixtures.monitor",
    "fixtures.background",
    "fixtures.foreground",
)
