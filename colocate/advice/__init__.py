"""What to do with an answer: remedies, the largest value that fits, the distance to the cliff, worth, and who shares.

Nothing of it enters a verdict, and nothing below it knows of it: neither `colocate.verdict.rules` nor a recorded group.
"""
