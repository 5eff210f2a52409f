# SPDX-License-Identifier: Apache-2.0
"""Evidence from a GPU, gathered in pieces of minutes; started by `scripts/gpu-evidence`."""
