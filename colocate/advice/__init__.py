# SPDX-License-Identifier: Apache-2.0
"""What to try next: fixes, the largest value that fits, the memory margin, the speedup, and who shares a GPU.

Nothing of it enters a verdict, and nothing below it knows of it: neither `colocate.verdict.rules` nor a recorded group.
"""

from colocate.advice.fit import Fit, Grid, LargestValue, Tried, Variable, variable
from colocate.advice.forecast import Answer, Forecast, forecast, needed, program_of
from colocate.advice.next_plan import Next, follow_up, what_next
from colocate.advice.packing import PackingProblem, best_pairs
from colocate.advice.pairing import TIERS, UNKNOWN, OrderedPair, ordered_pairs
from colocate.advice.prediction import predict
from colocate.advice.predictor import Abandoned, Behind, Predictor
from colocate.advice.proposal_forecasts import NOT_YET, ProposalForecast, advise
from colocate.advice.proposals import is_unfit
from colocate.advice.remedies import KIND, Remedied, Remedies, is_of_memory
from colocate.advice.solo_profiles import SoloProfile, known_of, of_catalog, of_plan, predicted, rank, remembered
from colocate.advice.solo_runs import read_speedup, settle
from colocate.advice.stress import LEAST_RESOLUTION_BYTES, Stress, stress
