"""Runs programs one after the other in this process, each as ``python PROGRAM`` would; they must not know of it."""

import gc
import runpy
import sys

import torch

for path in sys.argv[1:]:
    sys.argv = [path]
    torch.cuda.reset_peak_memory_stats()
    runpy.run_path(path, run_name="__main__")
    print(f"-- {path.rpartition('/')[2]} {torch.cuda.max_memory_reserved()}", flush=True)
    gc.collect()
    torch.cuda.empty_cache()
