"""The `colocate` command: everything around a run that needs no pytest."""
