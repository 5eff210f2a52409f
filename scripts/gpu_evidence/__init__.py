"""Evidence from a card, gathered in pieces of minutes; started by `scripts/gpu-evidence`."""
