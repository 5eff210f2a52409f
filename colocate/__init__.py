"""colocate answers one question with evidence: can these two trainings share one GPU?"""

__version__ = "0.1.0"
