# SPDX-License-Identifier: Apache-2.0
"""Plans and catalogs: what is to be run, valid or refused with every mistake named."""

from colocate.plan import gpu_models
from colocate.plan.catalog import Catalog, Training, load_catalog
from colocate.plan.catalog_schema import Hyperparameter, Value
from colocate.plan.context_reading import CONTEXT_COMMAND, keep_row, read_row
from colocate.plan.gpu_models import (
    TABLE,
    VIRTUAL,
    GpuModel,
    GpuModelsFile,
    gpu_model,
    is_of_size,
    may_mean,
    model_called,
    model_of_size,
    satisfies,
    table,
)
from colocate.plan.overrides import Override, option_text, rewritten, solo_group, varied, with_flag
from colocate.plan.plan import Group, Limits, Plan, load_plan, needed
from colocate.plan.roles import ROLES, Role
from colocate.plan.validation import Mistakes, shown, suggestion
