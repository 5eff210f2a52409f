"""One GPU: a real one through NVML, a virtual one, or a larger one constrained to a smaller size."""
