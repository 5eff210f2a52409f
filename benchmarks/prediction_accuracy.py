"""How exact predictions are: the emulated GPU against published measurements on real ones.

    python benchmarks/prediction_accuracy.py            a sixth of the timm rows, and all others
    python benchmarks/prediction_accuracy.py --all      everything; about an hour on one core
    python benchmarks/prediction_accuracy.py --write    also writes docs/prediction-accuracy.md
    python benchmarks/prediction_accuracy.py --known    what was run before, with the rules of now
    python benchmarks/prediction_accuracy.py --evidence docs/evidence/CARD-DATE
                                                        only compares what was measured on a GPU of ours

The figures are in ``measured/``, the programs behind them in `published_programs`. Every case trains a few steps in a
forked process under the emulation; its trace is kept (``--fresh`` forgets them), and a change of the allocator's rules
or of the workspaces of convolutions only replays the traces.
"""
# ruff: noqa: E501  the page has one sentence per line

import argparse
import csv
import hashlib
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from gpu_evidence.calibration import comparisons, read_evidence, table_of  # noqa: E402

from colocate.plan import gpu_model  # noqa: E402
from colocate.probe.virtual_gpu import allocator, convolutions  # noqa: E402
from colocate.probe.virtual_gpu.trace import AllocationTrace, no_workspace, replay  # noqa: E402
from colocate.units import MIB  # noqa: E402
from colocate.verdict import predicted_peak  # noqa: E402
from colocate.verdict.evidence import Allocator  # noqa: E402
from colocate.verdict.predicted_peak import allocator_range  # noqa: E402

MEASURED = Path(__file__).parent / "measured"
PAGE = ROOT / "docs" / "prediction-accuracy.md"

# A folder with the version of transformers that the language models' record names (pip install --target).
LANGUAGE_MODELS = "TRANSFORMERS_4_51_3"

# The context on the machine of the Hugging Face measurements, given on the same page: a V100 in January 2022.
BERT_CONTEXT_MIB = 1343

# Where a whole GPU was read, its context is one constant of each machine; around it, what users get for an A100.
A100 = gpu_model("A100")


@dataclass(frozen=True)
class Case:
    """One published figure in MiB. ``quantity`` is what was read: ``gpu``, ``reserved`` or ``allocated`` memory."""

    family: str
    program: str
    model: str
    batch: str
    size: str
    optimizer: str
    dtype: str
    quantity: str
    measured_mib: float
    torch: str
    gpu: str
    source: str

    @property
    def name(self) -> str:
        """What a reader needs to know it by."""
        words = (self.model, f"batch {self.batch}", self.size, self.optimizer, self.dtype, self.quantity)
        return ", ".join(word for word in words if word)

    @property
    def key(self) -> str:
        """The same for cases that differ only in what was read."""
        words = (self.program, self.model, self.batch, self.size, self.optimizer, self.dtype)
        return hashlib.sha256("|".join(words).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Found:
    """What the emulation said, in bytes, each also with the workspaces that there could be; ``kind`` of network."""

    allocated: int
    reserved: int
    allocated_bound: int
    reserved_bound: int
    kind: str


def cases() -> list[Case]:
    """All of them, those of timm last; readings of timm that stopped growing with the batch are left out."""
    with (MEASURED / "published.csv").open(newline="") as file:
        found = [Case(**{**row, "measured_mib": float(row["measured_mib"])}) for row in csv.DictReader(file)]
    with (MEASURED / "timm.csv").open(newline="") as file:
        rows = [(row["model"], int(row["batch_size"]), int(row["measured_mib"])) for row in csv.DictReader(file)]
    failed = set(_failed(rows))
    rows = sorted(rows, key=lambda row: hashlib.sha256(f"{row[0]}{row[1]}".encode()).hexdigest())
    return found + [
        Case("timm", "timm_script", model, str(batch), "", "SGD", "fp32", "gpu", measured, "", "A100 40 GB", "timm.csv")
        for model, batch, measured in rows
        if (model, batch) not in failed
    ]


def _failed(rows: Sequence[tuple[str, int, int]]) -> Iterator[tuple[str, int]]:
    """Readings of runs that must have run out of memory: they grow less than half as fast as those before them."""
    by_model: dict[str, list[tuple[int, int]]] = {}
    for model, batch, measured in rows:
        by_model.setdefault(model, []).append((batch, measured))
    for model, readings in by_model.items():
        readings.sort()
        for (a, low), (b, middle), (c, high) in zip(readings, readings[1:], readings[2:], strict=False):
            if (high - middle) / (c - b) < (middle - low) / (b - a) / 2:
                yield model, c


# --- running them -----------------------------------------------------------------------------------------------------


def train(case: Case, folder: str) -> None:
    """Train a few steps of a case on a bottomless virtual GPU, in a process of its own, and write the trace."""
    leave = os._exit  # the emulation writes a list of all packages before it lets a process end
    os.environ["COLOCATE_TRACE"] = "1"
    if case.program == "language" and LANGUAGE_MODELS in os.environ:
        sys.path.insert(0, os.environ[LANGUAGE_MODELS])
    import gc

    import torch
    from published_programs import PROGRAMS

    from colocate.probe.imports import AfterImport
    from colocate.probe.record import Record
    from colocate.probe.virtual_gpu import emulation
    from colocate.probe.virtual_gpu.state import VirtualGpu

    state = Path(folder, "GPU.json")
    VirtualGpu.create(state, name="NVIDIA A100 (virtual)", total_bytes=10**15)
    record = Record(folder, "virtual", torch.__version__)
    record.fields.update(context_bytes=None, batches_per_pass=None, passes_cut=0, convolutions=False, unsupported=None)
    watcher = AfterImport()
    watcher.install()
    emulation.emulate(str(state), record, watcher, None)
    PROGRAMS[case.program](**vars(case))
    (trace,) = (one for one in gc.get_objects() if isinstance(one, AllocationTrace))
    trace.write(Path(folder, "case.trace"))
    leave(0)


def found(case: Case, kept: Path, fresh: bool) -> Found | None:
    """What the emulation says of a case, run now or replayed; None where it failed."""
    path = kept / f"{case.key}.trace"
    if fresh or not path.is_file():
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            process = multiprocessing.get_context("fork").Process(target=train, args=(case, folder))
            process.start()
            process.join(300)
            if process.is_alive():
                process.kill()
                process.join()
            written = Path(folder, "case.trace")
            if not written.is_file():
                return None
            shutil.move(written, path)
    rules = b"".join(Path(str(module.__file__)).read_bytes() for module in (allocator, convolutions))
    known = kept / f"{case.key}-{hashlib.sha256(rules + str(path.stat().st_mtime_ns).encode()).hexdigest()[:8]}.json"
    if not known.is_file():
        trace = AllocationTrace.read(path)
        bare, with_workspaces = replay(trace, no_workspace), replay(trace, convolutions.workspace_bound)
        figures = [one.highest for both in (bare, with_workspaces) for one in (both.allocated, both.reserved)]
        known.write_text(json.dumps([*figures, kind_of(trace.convolutions)]))
    return Found(*json.loads(known.read_text()))


def kind_of(calls: Sequence[convolutions.Convolution]) -> str:
    """The convolutions that prevail among the different calls of a network."""
    if not calls:
        return ""
    dense = sum(one.groups == 1 and not one.pointwise for one in calls) / len(calls)
    channelwise = sum(one.depthwise for one in calls) / len(calls)
    grouped = sum(one.groups > 1 and not one.depthwise for one in calls) / len(calls)
    if dense > 0.25 or len(calls) < 8:
        return "dense" if len(calls) >= 8 else "few"
    return "depthwise" if channelwise > 0.1 else "grouped" if grouped > 0.1 else "few"


def all_found(wanted: Sequence[Case], kept: Path, fresh: bool) -> dict[Case, Found]:
    results: dict[Case, Found] = {}
    for number, case in enumerate(wanted, 1):
        one = found(case, kept, fresh)
        if one is None:
            print(f"failed: {case.family}: {case.name}", file=sys.stderr)
        else:
            results[case] = one
        print(f"\r[{number}/{len(wanted)}] {case.name[:70]:70}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return results


# --- comparing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A case with its prediction in MiB, and whether its range held."""

    case: Case
    family: str
    low: float
    expected: float
    high: float

    @property
    def error(self) -> float:
        """Of the expected value: negative where too little was predicted."""
        return self.expected / self.case.measured_mib - 1

    @property
    def held(self) -> bool:
        """The measured figure lies in the range, or beside it by no more than it was rounded."""
        return self.low - 1 <= self.case.measured_mib <= self.high + 1


def compared(results: dict[Case, Found]) -> list[Row]:
    """All cases.

    The context and rest of the GPUs of timm and of the perceptrons, which nobody read, are one constant each: the
    median gap of the half of the models that a hash of their names picks.
    """
    constants = {"bert_large": float(BERT_CONTEXT_MIB)}
    for program in ("timm_script", "mlp"):
        gaps = [
            case.measured_mib - one.reserved / MIB
            for case, one in results.items()
            if case.program == program and int(hashlib.sha256(case.model.encode()).hexdigest(), 16) % 2
        ]
        constants[program] = statistics.median(gaps) if gaps else 0.0
    return [_row(case, one, constants.get(case.program)) for case, one in results.items()]


def _row(case: Case, one: Found, constant_mib: float | None) -> Row:
    """The range that a user is shown; where no context was measured, without what the context adds to it."""
    allocated = case.quantity == "allocated"
    context = A100.context_bytes
    unknown = case.program in ("timm_script", "mlp")
    shown = allocator_range(
        Allocator(
            pid=1,
            mode="virtual",
            max_allocated_bytes=one.allocated,
            max_reserved_bytes=one.allocated if allocated else one.reserved,
            max_reserved_bound_bytes=one.allocated_bound if allocated else one.reserved_bound,
            context_bytes=context,
            context_range_bytes=A100.context_range_bytes if unknown else (context, context),
            convolutions=bool(one.kind),
            compiled="compiled" in case.family,
            half=case.dtype not in ("fp32", ""),
        )
    )
    assert shown is not None
    low, expected, high = (
        (value - context) / MIB + (constant_mib or 0.0)
        for value in (shown.low_bytes, shown.expected_bytes, shown.high_bytes)
    )
    family = f"timm, {one.kind} convolutions" if case.family == "timm" else case.family
    return Row(case, family, low, expected, high)


def summary(name: str, rows: Sequence[Row]) -> str:
    errors = sorted(abs(row.error) for row in rows)
    width = statistics.median((row.high - row.low) / row.case.measured_mib for row in rows)
    above = sum(row.high + 1 < row.case.measured_mib for row in rows)
    figures = [errors[min(len(errors) - 1, int(share * len(errors)))] for share in (0.5, 0.9, 0.95, 1.0)]
    words = " | ".join(f"{value:.1%}" for value in (statistics.mean(row.error for row in rows), *figures))
    return (
        f"| {name} | {len(rows)} | {words} | {sum(row.held for row in rows) / len(rows):.0%} ({above}) | {width:.0%} |"
    )


def by_family(rows: Sequence[Row]) -> dict[str, list[Row]]:
    families: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.family):
        families.setdefault(row.family, []).append(row)
    return families


def tables(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| family | number | bias | median error | 90 % below | 95 % below | worst | range held (above it) | its width |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [summary(family, of) for family, of in by_family(rows).items()]
    return [*lines, summary("**everything**", rows)]


def held_out(rows: Sequence[Row]) -> Iterator[str]:
    """How often ranges would hold in each family if the margins were set by all the others.

    The margins are the smallest that hold 95 of 100 rows there, half of the misses on each side; every family counts
    the same, however many rows it has.
    """
    families = by_family(rows)
    for family, of in families.items():
        others = [(row, 1 / len(some)) for name, some in families.items() if name != family for row in some]
        up = _margin([(row.case.measured_mib / row.high - 1, weight) for row, weight in others])
        down = _margin([(1 - row.case.measured_mib / row.low, weight) for row, weight in others])
        held = [row.low * (1 - down) - 1 <= row.case.measured_mib <= row.high * (1 + up) + 1 for row in of]
        yield f"| {family} | {len(of)} | {up:+.1%} | {-down:+.1%} | {sum(held) / len(of):.0%} |"


def _margin(needed: Sequence[tuple[float, float]]) -> float:
    """What holds all but one in forty, by weight."""
    left = 0.025 * sum(weight for _, weight in needed)
    for margin, weight in sorted(needed, reverse=True):
        left -= weight
        if left < 0:
            return margin
    return 0.0


def details(rows: Sequence[Row]) -> list[str]:
    lines = [
        "| family | case | measured | predicted | error | range | held |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row.family} | {row.case.name} | {row.case.measured_mib:.0f} | {row.expected:.0f} | {row.error:+.1%} |"
            f" {row.low:.0f} to {row.high:.0f} | {'yes' if row.held else '**no**'} |"
        )
    return lines


def of_our_own(folder: Path) -> Iterator[str]:
    """Trainings and groups that were predicted and measured on the same machine."""
    document = read_evidence(folder)
    found = list(comparisons(document))
    yield f"{document['gpu']}, driver {document['driver']} ({folder.name}); beyond the GPU's baseline"
    if not found:
        yield "nothing was both predicted and measured: scripts/gpu-evidence --only predictions"
        return
    yield ""
    yield from table_of(found)
    for kind in ("training", "group"):
        errors = [abs(one.error) for one in found if one.kind == kind]
        held = [one.held for one in found if one.kind == kind]
        if errors:
            median, worst = statistics.median(errors), max(errors)
            yield ""
            yield (
                f"{len(errors)} x {kind}: median error {median:.1%}, worst {worst:.1%}, {held.count('yes')} intervals held, "
                f"{held.count('above')} needed more"
            )


def page(rows: Sequence[Row], total: int) -> str:
    """docs/prediction-accuracy.md."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "transformers"))
    worst = [
        row
        for of in by_family(rows).values()
        for row in sorted(of, key=lambda row: -abs(row.error))[: max(1, len(of) // 10)]
    ]
    preface = PREFACE.format(
        arguments=" ".join(sys.argv[1:]),
        date=datetime.now(UTC).date(),
        python=platform.python_version(),
        packages=packages,
        number=len(rows),
        total=total,
        rest=""
        if len(rows) == total
        else "; the others are models of timm and perceptrons in random order, left out for want of time",
        operands=convolutions.OPERANDS,
        benchmark=convolutions.OPERANDS_IN_BENCHMARK,
        more=predicted_peak.MORE,
        half=predicted_peak.MORE_IN_HALF,
        compiled=predicted_peak.COMPILED_MORE,
        cached=predicted_peak.CACHED_LESS,
        less=predicted_peak.LESS,
    )
    tail = [OTHERS, *details(worst), CAUSES, UNLIKE]
    return "\n".join([preface, *tables(rows), HELD_OUT.rstrip("\n"), *held_out(rows), *tail])


PREFACE = """\
# How exact predictions are

Written by `python benchmarks/prediction_accuracy.py {arguments}` on {date}: Python {python}, {packages}.
{number} of {total} published figures were compared{rest}.
No figure here was measured by us: each is somebody else's, on a GPU, driver and PyTorch of their own, while the prediction is of the versions above; the language models alone were emulated with transformers 4.51.3, the version of their record, because 5.23 moves them by up to a tenth.

## The range

A prediction is the reserved memory of the simulated allocator and the context of the GPU's row in `settings/gpu_models.json`.
Its range is as wide as what the program does is unknown:

- **up** to the reserved memory that results if every dense convolution takes a workspace of {operands} times its operands (input, weights, output) while it runs, {benchmark} times with `cudnn.benchmark`, plus {more:.0%} ({half:.0%} where matrices are multiplied in half precision, {compiled:.0%} more where functions are compiled), plus the most that the context may be;
- **down** to the reserved memory less {cached:.0%} of what is cached and not live at the fullest instant, less {less:.0%} (half of it all where functions are compiled), plus the least that the context may be.

Convolutions of 1x1 and of one filter per channel count as needing no workspace.
The workspaces are replayed at their places among all other requests, so that one which finds room in the cache costs nothing.
The ends of two trainings are added for a group.
No program of the check was predicted with a constant of its own; where a whole GPU was read (timm, the perceptrons), its context and whatever else was on it is one constant of that machine, the median gap of half of the models, and the range around it is that of an A100.
Readings of timm that stop growing with the batch, because the run must have failed, are left out.

## Result

Errors are of the expected value against the measured one; "above it" counts the cases that needed more than the range allows, the direction in which a prediction of "fits" would be wrong.
"""

HELD_OUT = """\

## Would the ranges hold in a family that decided nothing?

For each family, the margins that hold 95 of 100 rows of all other families (every family counts the same), as changes of the ends that are used (up at the lower end, down at the upper one: a narrower range), and how often the range would have held with them.

| family | number | upper end | lower end | held |
| --- | --- | --- | --- | --- |
"""

OTHERS = """\

## Beside others

Errors that the same sources publish, or that follow from their data: FakeTensor on the table of timm 46 % in the median (GPUMemNet's own comparison), GPUMemNet 56 %, Horus 30 %; xMem 3.0 % on its own rows, 3.7 % in eleven files of its artefact, where DNNMem has 27 %, SchedTune 19.5 % and LLMem, outside of what it is made for, 48 to 81 %.

## The worst of each family

A tenth of each family, at least one. What is known of the causes is below.
"""

CAUSES = """\

What was found behind them:

- **Convolutions with `cudnn.benchmark`** (timm, segmentation): every plan is tried, and PyTorch allocates the largest workspace among them (`Conv_v8.cpp`). One times the operands of dense convolutions in the expected value brought nineteen rows of timm from 3.2 to 2.8 % in the median and five of xMem, which run without it, from 2.4 to 6.1 %; twice the operands helped neither. So the workspaces stay in the upper end. What an EfficientNet-EL needs, whose edge blocks are dense 3x3 convolutions, is beyond even that.
- **Without it** (xMem): a VGG-19 needs 3.4 MiB more for each image, a VGG-16 nothing or less than nothing; a MnasNet needs 370 MiB more at a batch of 200, 530 at 300, and hardly anything from 400 on: which are the rows of the family above their range. The share of the upper end is 5 % because of one more row of the family and two language models, which missed it with the 4 % from before these rows were seen; 4 % would have been enough for 95 of 100 rows altogether, and the study's group 7 would fit with it. The heuristics change their plan, and nothing published says when; to allow for as much in every network of this kind would widen their ranges by half.
- **Contexts**: of timm's smallest programs, some need 40 to 110 MiB less beside their tensors than the constant of their machine: a context grows with the kernels that are used.
- **Fragmentation** (ResNet-50 and MobileNetV3 of xMem, res2net): what is live is right, and the GPU reserved less of what is cached; a workspace that was allocated in between changes which hole is taken.
- **ViT-L in half precision**: a nightly build of June 2023. Adam made a list of denominators beside that of square roots before PyTorch 2.1, which is emulated here and explains the accumulated row; the rest of 4 to 6 % is not explained. GPT-2 in bfloat16 on PyTorch 2.6 shows nothing of it.
- **Language models of xMem**: its loop for text was not found. Forgetting gradients between forward and backward, with outputs that live on, comes nearest; errors go both ways by up to 7 %. Rows of the same kind with the order of a known script, GPT-2 from scratch, are within 0.2 %.
- **Compiled programs**: a GPT-2 took 5 % more than eager and one with a padded vocabulary nothing more; others report 31 % less (a spiking ResNet, spikingjelly 740) and 15 % less (torchtune). So eager is no upper bound.

Not compared, because what ran is not known well enough: the attention tables of transformers' documentation (whether their script passes labels, and how long its outputs live, moves them by up to a quarter), LoRA runs of PEFT, litgpt and torchtune (lengths of the batches), detectors (the number of proposals), Liger's kernels, quantised bases and 8-bit optimizers.
"""

UNLIKE = """\
## What is unlike anything measured here

For these a prediction is made, and nothing published could be compared:

- **recurrent layers**: the reserve and workspace of cuDNN's LSTM and GRU rest on the byte counts of PyTorch issue 2895;
- **1-D and 3-D convolutions**, transposed ones, and convolutions in half precision or channels_last;
- **two processes on one GPU**: a fuller GPU makes cuDNN choose smaller workspaces, which no solo figure shows;
- **contexts** of GPUs that nobody read: `settings/gpu_models.json` says which are estimated.

With a GPU at hand, `colocate` measures instead of predicting.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every row of timm's")
    parser.add_argument("--write", action="store_true", help="write the page")
    parser.add_argument("--fresh", action="store_true", help="run what is known again")
    parser.add_argument("--known", action="store_true", help="only what was run before")
    parser.add_argument("--part", default="0/1", help="only run these cases, such as 0/2, to use several processors")
    parser.add_argument("--evidence", type=Path, nargs="+", help="folders that scripts/gpu-evidence has written")
    options = parser.parse_args()
    if options.evidence:
        print("\n".join(line for folder in options.evidence for line in of_our_own(folder)))
        return
    everything = cases()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept = home / "colocate" / "accuracy" / f"torch-{version('torch')}"
    wanted = [case for index, case in enumerate(everything) if options.all or case.family != "timm" or index % 6 == 0]
    if options.known:
        wanted = [case for case in wanted if (kept / f"{case.key}.trace").is_file()]
    else:
        import torch
        import torch._dynamo  # in the parent, as what follows, so that its children need not
        import torchvision  # noqa: F401

        torch.set_num_threads(1)
    part, parts = map(int, options.part.split("/"))
    rows = compared(all_found(wanted[part::parts], kept, options.fresh))
    print("\n".join([*tables(rows), "", *held_out(rows)]))
    if options.write:
        PAGE.write_text(page(rows, len(everything)))


if __name__ == "__main__":
    main()
