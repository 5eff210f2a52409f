# SPDX-License-Identifier: Apache-2.0
"""The twelve trainings of the plan, one readable file each; none of them knows the harness that runs them."""
