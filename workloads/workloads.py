# SPDX-License-Identifier: Apache-2.0
"""Stands for the package ``workloads`` where a training is started as a file: ``python workloads/mnist.py``.

Python then looks into this folder and not into the one above. A module with a ``__path__`` is a package.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parent)]
