"""colocate answers one question with evidence: can these two trainings share one GPU?"""

from pathlib import Path

__version__ = "0.1.0"

# The wheel carries feasibility/, fixtures/, settings/ and workloads/ inside of this package. In a checkout they stand
# beside it, and are found there under the same names.
_checkout = Path(__file__).parent.parent
if not (Path(__file__).parent / "feasibility").is_dir() and (_checkout / "feasibility" / "test_groups.py").is_file():
    __path__.append(str(_checkout))
