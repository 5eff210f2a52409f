# SPDX-License-Identifier: Apache-2.0
"""Code that is injected into a training: counters of its allocator, or a whole emulated GPU.

`start` decides which: on a real GPU `counting` and `record` are all there is. For a dry run `virtual_gpu` is the GPU,
`coverage` decides how much of the program is run, and nothing is changed outside of it: `overlay` and `landlock` keep
the program's files apart, `uploads` what it would send, and `nvml` and `nvidia_smi` answer what it asks the driver.

The package runs inside the training's own interpreter, which may have neither colocate nor pydantic. It therefore
uses the standard library and torch only, imports its own modules relatively, and is loaded by file location under the
name ``colocate_probe`` (see `inject/sitecustomize.py`), so that nothing of ours becomes importable in the program.
`virtual_gpu.state` and `virtual_gpu.allocator` know no torch; the harness imports `virtual_gpu.state`.
"""
