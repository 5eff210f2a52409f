# SPDX-License-Identifier: Apache-2.0
"""bug_localization: ranks source files by their likely guilt in a bug report (bug-localization-by-dnn-and-rvsm).

Start   python -m workloads.bug_localization --epochs 1
Data    262,599 rows of five similarities: 5,149 Eclipse bug reports with one buggy and 50 innocent files each.
        k = 10 contiguous folds of the shuffled rows; 236,339 rows train a fold, every 51st of them ten times, which
        makes 278,054. (Meant to repeat the buggy files; after the shuffle it repeats arbitrary rows.)
Model   scikit-learn's MLPRegressor, 5 -> 300 -> 1. 2,101 weights. CPU only, no PyTorch.
Train   SGD with batches of 200, Nesterov momentum 0.9, learning rate 0.001, until the loss has not fallen by 1e-4 for
        30 iterations in a row, at most max_iter: about 1,391 updates per iteration and fold.
        One step here is one iteration of one fold, an epoch is the whole k-fold run; its number of steps is known only
        at its end, before that max_iter x folds stands for it.
Memory  none on the GPU. One process per fold, side by side (--jobs).

The study's ten processes starved a training on the GPU beside them. Here one core is left to others by default.
"""

import argparse
import contextlib
import os
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import joblib
import numpy
from sklearn.neural_network import MLPRegressor

from workloads import common

REPORTS, FILES_PER_REPORT = 5_149, 51
FEATURES = ("rVSM_similarity", "collab_filter", "classname_similarity", "bug_recency", "bug_frequency")
HIDDEN = 300
BATCH_SIZE = 200
TOLERANCE, PATIENCE = 1e-4, 30
TOPS = (1, 5, 10, 20)
POLL_S = 0.2
PARENT_POLL_S = 0.5

# What a worker process writes into its row of the counts file, for the parent to tell.
ITERATIONS, STATE = 0, 1
WAITING, TRAINING, EVALUATING, DONE = range(4)


def folds(text: str) -> int:
    number = common.positive_int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"expected at least 2 folds, found {text!r}")
    return number


def arguments(argv: list[str] | None = None) -> Namespace:
    parser = common.parser(__doc__, epochs=1, seed=42)
    parser.add_argument("--device", choices=["auto", "cpu"], default="cpu", help="the CPU in either case")
    parser.add_argument("--lr", type=float, default=0.001, help="default 0.001")
    parser.add_argument("--batch-size", type=common.positive_int, default=BATCH_SIZE, help=f"default {BATCH_SIZE}")
    parser.add_argument("--kfold", type=folds, default=10, help="default 10")
    parser.add_argument("--alpha", type=float, default=1e-5, help="L2 penalty (default 1e-5)")
    parser.add_argument("--max-iter", type=common.positive_int, default=10_000, help="iterations (default 10000)")
    parser.add_argument("--jobs", type=common.positive_int, help="processes (default: folds, below the cores)")
    parser.add_argument("--rows", type=common.positive_int, help="use only so many rows (a cut epoch)")
    args = parser.parse_args(argv)
    args.device = "cpu"
    return args


# ---- data -----------------------------------------------------------------------------------------------------------


class Rows:
    """Features (R, 5) float64, whether the file was the buggy one (R,), and the number of its bug report (R,)."""

    def __init__(self, features: numpy.ndarray, matches: numpy.ndarray, reports: numpy.ndarray, kind: str) -> None:
        self.features, self.matches, self.reports, self.kind = features, matches, reports, kind

    def __len__(self) -> int:
        return len(self.matches)


def load(data_dir: Path) -> Rows:
    """The rows of ``data_dir/bug-localization/features.csv``, else as many synthetic ones."""
    path = data_dir / "bug-localization" / "features.csv"
    if path.is_file():
        table = numpy.genfromtxt(path, delimiter=",", names=True, usecols=("report_id", *FEATURES, "match"))
        _, reports = numpy.unique(table["report_id"], return_inverse=True)
        features = numpy.stack([table[name] for name in FEATURES], axis=1)
        return Rows(features, table["match"], reports, "real")
    random = numpy.random.default_rng(0)
    reports = numpy.repeat(numpy.arange(REPORTS), FILES_PER_REPORT)
    matches = numpy.tile([1.0] + [0.0] * (FILES_PER_REPORT - 1), REPORTS)
    features = random.random((len(reports), len(FEATURES))) * (0.6 + 0.4 * matches[:, None])
    return Rows(features, matches, reports, "synthetic")


def split(rows: int, kfold: int, fold: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Row numbers of one fold for training, every 51st ten times, and for the test."""
    size = rows // kfold + 1 if rows % kfold else rows // kfold
    test = numpy.arange(fold * size, min((fold + 1) * size, rows))
    train = numpy.setdiff1d(numpy.arange(rows), test, assume_unique=True)
    return numpy.concatenate([train, numpy.repeat(train[::FILES_PER_REPORT], 9)]), test


# ---- one fold, in a process of its own ------------------------------------------------------------------------------


def build_model(args: Namespace) -> MLPRegressor:
    return MLPRegressor(
        hidden_layer_sizes=(HIDDEN,),
        solver="sgd",
        alpha=args.alpha,
        batch_size=args.batch_size,
        learning_rate_init=args.lr,
        momentum=0.9,
        nesterovs_momentum=True,
        random_state=args.seed,
    )


def end_with(parent: int) -> None:
    """Ends this worker when its parent is gone: joblib's workers otherwise finish their fold, then wait for 300 s."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_S)
        os._exit(1)

    is_watched = any(thread.name == watch.__qualname__ for thread in threading.enumerate())
    if os.getpid() != parent and not is_watched:  # with one job the parent is the worker
        threading.Thread(target=watch, name=watch.__qualname__, daemon=True).start()


def train_fold(args: Namespace, rows: Rows, fold: int, counts_file: Path, parent: int) -> dict[str, float]:
    """Trains and evaluates one fold: its last training loss and its hit rates."""
    counts = numpy.memmap(counts_file, dtype=numpy.int64, mode="r+", shape=(args.kfold, 2))[fold]
    train, test = split(len(rows), args.kfold, fold)
    end_with(parent)
    counts[STATE] = TRAINING
    model = build_model(args)
    best, waited = numpy.inf, 0
    limit = args.max_iter if args.max_steps is None else min(args.max_iter, args.max_steps)
    while counts[ITERATIONS] < limit and waited <= PATIENCE:  # as MLPRegressor.fit, one iteration at a time
        model.partial_fit(rows.features[train], rows.matches[train])
        waited = waited + 1 if model.loss_ > best - TOLERANCE else 0
        best = min(best, model.loss_)
        counts[ITERATIONS] += 1
    counts[STATE] = EVALUATING
    rates = hit_rates(model, rows, numpy.unique(rows.reports[test]))
    counts[STATE] = DONE
    return {"train_loss": float(model.loss_), **rates}


def hit_rates(model: MLPRegressor, rows: Rows, reports: numpy.ndarray) -> dict[str, float]:
    """Share of the bug reports whose buggy file is among the best 1, 5, 10 and 20 of its files."""
    order = numpy.argsort(rows.reports, kind="stable")
    starts = numpy.searchsorted(rows.reports[order], numpy.arange(rows.reports.max() + 2))
    hits = dict.fromkeys(TOPS, 0)
    for report in reports:  # one by one, as in the original
        files = order[starts[report] : starts[report + 1]]
        ranked = files[numpy.argsort(-model.predict(rows.features[files]))]
        for top in TOPS:
            hits[top] += bool(rows.matches[ranked[:top]].any())
    return {f"top{top}_accuracy": count / len(reports) for top, count in hits.items()}


# ---- the parent tells what the folds do -----------------------------------------------------------------------------


def tell(counts: numpy.ndarray, progress: common.Progress) -> None:
    """Tells the steps that the folds have made since the last call, and the phase in which they are."""
    train, states = progress.phases["train"], counts[:, STATE].copy()
    steps = int(counts[:, ITERATIONS].sum())
    ended_early = bool((states >= EVALUATING).all()) and steps < train.planned
    if ended_early:  # only now it is known how many steps there are
        train.planned = steps
    if ended_early or steps > train.steps:
        progress.begin("train")
        progress.step(steps - train.steps)
    if (states == TRAINING).any():
        progress.begin("train")
    elif (states == EVALUATING).any():
        progress.begin("evaluate", steps=1, passes=len(counts))


@contextlib.contextmanager
def watched(counts: numpy.ndarray, progress: common.Progress) -> Iterator[None]:
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(POLL_S):
            tell(counts, progress)

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    tell(counts, progress)


# ---- loop -----------------------------------------------------------------------------------------------------------


def train(args: Namespace, rows: Rows, progress: common.Progress) -> None:
    order = numpy.random.default_rng(args.seed).permutation(len(rows))
    used = order[: args.rows]
    shuffled = Rows(rows.features[used], rows.matches[used], rows.reports[used], rows.kind)
    jobs = args.jobs or max(1, min(args.kfold, len(os.sched_getaffinity(0)) - 1))
    weights = (len(FEATURES) + 1) * HIDDEN + HIDDEN + 1

    progress.ready(rows.kind, weights, args.kfold * args.max_iter)
    for _ in range(args.epochs):
        progress.begin("train", args.max_iter, passes=args.kfold)
        with tempfile.TemporaryDirectory() as folder:
            counts_file = Path(folder) / "counts"
            counts = numpy.memmap(counts_file, dtype=numpy.int64, mode="w+", shape=(args.kfold, 2))
            with watched(counts, progress):
                fold = joblib.delayed(train_fold)
                results = joblib.Parallel(n_jobs=jobs)(
                    fold(args, shuffled, number, counts_file, os.getpid()) for number in range(args.kfold)
                )
        progress.begin("evaluate", steps=1, passes=args.kfold)
        progress.step(args.kfold)

        phase = progress.phases["train"]
        phase.samples = phase.steps * len(split(len(shuffled), args.kfold, 0)[0])
        if args.max_steps is None or args.max_steps >= args.max_iter:
            phase.full = phase.steps
        metrics = {name: float(numpy.mean([result[name] for result in results])) for name in results[0]}
        progress.end_epoch(metrics, is_cut=len(shuffled) < len(rows))


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    with common.Progress("bug_localization", args) as progress:
        rows = load(args.data_dir)
        train(args, rows, progress)
        while args.repeat:
            train(args, rows, progress)


if __name__ == "__main__":
    main()
