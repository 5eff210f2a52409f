"""Random changes to everything that reads a file."""
