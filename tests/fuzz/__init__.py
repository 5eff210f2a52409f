"""Coverage-guided fuzzing of everything that reads a file; run by hand, see CONTRIBUTING.md."""
