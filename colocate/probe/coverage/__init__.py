# SPDX-License-Identifier: Apache-2.0
"""How much of a program a dry run runs, and what is said of the rest. Knows no virtual GPU, only its observers.

- what is cut: `loaders` (passes over data), `turns` (loops over a range), `own_loops` (any other), by `coverage`,
  which keeps its account in `passes`;
- what is not cut away: `longest` finds the largest batch, `growth` what each step keeps, `collected` what a program
  gathers, `conditions` the step at which something new happens, by `series` of the numbers that they read; `watch` has
  every test of the program told to them, and `weighing` tells whether memory may hang on one;
- what nobody knows: `decisions` answers questions about values, by what `branches` finds behind them;
- `loop_source` reads loops, `source` files and frames.
"""
