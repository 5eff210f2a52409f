"""The emulated CUDA device: an allocator, a shared state file, and the patches that make PyTorch use them."""
