"""The run directory: written once, read back typed."""
