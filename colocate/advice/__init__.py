"""What to try next: fixes, the largest value that fits, the memory margin, the speedup, and who shares a GPU.

Nothing of it enters a verdict, and nothing below it knows of it: neither `colocate.verdict.rules` nor a recorded group.
"""
