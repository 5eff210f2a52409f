# SPDX-License-Identifier: Apache-2.0
"""Code that is injected into a training: counters of its allocator, or a whole emulated GPU.

The package runs inside the training's own interpreter, which may have neither colocate nor pydantic. It therefore
uses the standard library and torch only, imports its own modules relatively, and is loaded by file location under the
name ``colocate_probe`` (see `inject/sitecustomize.py`), so that nothing of ours becomes importable in the program.
`gpu` and `allocator` know no torch; the harness imports `gpu` too.
"""
