"""Evidence from a GPU, gathered in pieces of minutes; started by `scripts/gpu-evidence`."""
