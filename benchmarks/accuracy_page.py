"""The page docs/prediction-accuracy.md: its tables, and its words, which `prediction_accuracy.py --write` fills."""
# ruff: noqa: E501  the page has one sentence per line

import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from accuracy_rows import Row

from colocate.probe.virtual_gpu import convolutions
from colocate.verdict import predicted_peak


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


def page(rows: Sequence[Row], total: int, old: int) -> str:
    """docs/prediction-accuracy.md; ``old`` rows rest on traces of an earlier state of the emulation."""
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
        old=old or "none",
        operands=convolutions.OPERANDS,
        benchmark=convolutions.OPERANDS_IN_BENCHMARK,
        more=predicted_peak.MORE,
        half=predicted_peak.MORE_IN_HALF,
        compiled=predicted_peak.COMPILED_MORE,
        cached=predicted_peak.CACHED_LESS,
        cached_more=predicted_peak.CACHED_MORE,
        less=predicted_peak.LESS,
    )
    tail = [OTHERS, *details(worst), CAUSES, UNLIKE]
    return "\n".join([preface, *tables(rows), HELD_OUT.rstrip("\n"), *held_out(rows), *tail])


PREFACE = """\
# How exact predictions are

Written by `python benchmarks/prediction_accuracy.py {arguments}` on {date}: Python {python}, {packages}.
{number} of {total} published figures were compared{rest}; {old} by traces of an earlier state of the emulation.
No figure here was measured by us: each is somebody else's, on a GPU, driver and PyTorch of their own, while the prediction is of the versions above; the programs of transformers alone were emulated with the version of their record, as far as it is known: 4.51.3 for the language models of xMem, 4.42.4 and 4.46.3 for the tables of attention, where 4.51.3 moves OPT by up to 20 % and Pythia by 9 %.

## The range

A prediction is the reserved memory of the simulated allocator and the context of the GPU's row in `settings/gpu_models.json`.
Its range is as wide as what the program does is unknown:

- **up** to the reserved memory that results if every dense convolution takes a workspace of {operands} times its operands (input, weights, output) while it runs, {benchmark} times with `cudnn.benchmark`, plus {more:.0%} ({half:.0%} where matrices are multiplied in half precision, {compiled:.0%} more where functions are compiled) and {cached_more:.0%} of the share that is cached and not live at the fullest instant, plus the most that the context may be;
- **down** to the reserved memory less {cached:.0%} of what is cached and not live then, less {less:.0%} (half of it all where functions are compiled), plus the least that the context may be.

Convolutions of 1x1 and of one filter per channel count as needing no workspace.
The workspaces are replayed at their places among all other requests, so that one which finds room in the cache costs nothing.
The ends of two trainings are added for a group.
No program of the check was predicted with a constant of its own; where a whole GPU was read (timm, the perceptrons), its context and whatever else was on it is one constant of that machine, the median gap of half of the models; around it is what a user gets who has given one reading of a context without cuDNN, which the constant of the perceptrons stands for: 30 MiB to both sides without convolutions, up to 420 MiB more with them.
With `cudnn.benchmark`, the first call of each convolution gives the cache back, as PyTorch does.
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

- **Convolutions with `cudnn.benchmark`** (timm, segmentation): every plan is tried, and PyTorch allocates the largest workspace among them (`Conv_v8.cpp`). Afterwards it gives its cache back (`run_single_conv`), for each convolution that it has not seen; with that rule 335 rows of timm have a median error of 1.8 % where they had 2.5 %. Workspaces of one or two times the operands in the expected value bring that to 1.7 and 1.6 %, and the worst row from 20 to 28 %; they help networks of few convolutions and hurt those of many. So they stay in the upper end. What an EfficientNet-EL needs, whose edge blocks are dense 3x3 convolutions, is beyond even that.
- **Without it** (xMem): a VGG-19 needs 3.4 MiB more for each image, a VGG-16 nothing or less than nothing; a MnasNet needs 370 MiB more at a batch of 200, 530 at 300, and hardly anything from 400 on: which are the four rows of the family above their range. No workspace of one size, of one or two times an operand, or of so many times the weights, replayed at each of its convolutions, gives that pattern; to allow for as much in every network with one filter per channel would widen their ranges by half.
- **Contexts**: on the machine of GPUMemNet, 49 of 52 perceptrons had the same context to 4 MiB and all of them to 22, and of 67 small programs of timm all but 2 had 226 to 420 MiB more: cuDNN's kernels. Those 2 lie 426 and 562 MiB above, with workspaces perhaps. In the table of GPUs both figures stand apart where they are known.
- **Fragmentation** (ResNet-50 and MobileNetV3 of xMem, res2net, YOLOv5): what is live is right, and the GPU reserved less of what is cached; a workspace that was allocated in between changes which hole is taken, so that more workspace can mean less reserved memory, by up to 15 % in a replay. Where much is cached the range is wider for that. The margins are near the narrowest, of 378 that were tried, that leave no more rows above them than 5 % (7 % in half precision) of everything did; transformers, whose segments are full, have narrower ranges since.
- **The attention tables**: 59 of 63 rows of OPT and Pythia are exact to half a percent, with the version of transformers of their record. OPT's fused attention was 4 % too low from 2,048 tokens on, until a mask of ones that is made on the GPU was known to be one: a library that sees it leaves the mask out, and another kernel runs. BERT and DistilBERT were short by one matrix of the vocabulary with tied weights and are right to 1.5 % without.
- **Adapters**: the longest batch of the source's data is not published; 657 tokens are what its LoRA of rank 32 fits to, and the rows of the other methods follow from that to 1 %.
- **Detectors**: mmdetection matches the 200,000 anchors of a RetinaNet with the objects of an image on the GPU, right behind the forward pass: 36 bytes for each pair, 0.7 GiB for the 93 objects that one image of COCO has. Left out, three of four rows were 7 to 12 % too low; with it a small network, whose fullest instant is this one, is 9 % too high. YOLOv5's sizes were tried one after the other.
- **Sorts** (sparsemax): PyTorch sorts more than 4,096 elements with its keys once more and two lists of numbers beside them (`SortStable.cu`), and writes the gradients of sort, max and index into zeros in place. With both the six rows are exact.
- **ViT-L in half precision**: a nightly build of June 2023. Adam made a list of denominators beside that of square roots before PyTorch 2.1, which is emulated here and explains the accumulated row; the rest of 4 to 6 % is not explained. GPT-2 in bfloat16 on PyTorch 2.6 shows nothing of it.
- **Language models of xMem**: its loop for text was not found. Forgetting gradients between forward and backward, with outputs that live on, comes nearest; errors go both ways by up to 7 %. Rows of the same kind with the order of a known script, GPT-2 from scratch, are within 0.2 %.
- **Compiled programs**: a GPT-2 took 5 % more than eager and one with a padded vocabulary nothing more; others report 31 % less (a spiking ResNet, spikingjelly 740) and 15 % less (torchtune). So eager is no upper bound. A ViT-H under torchao's optimizers of 8 and 4 bits, which only work compiled, was right to 0.2 %.

Not compared, because what ran is not known well enough: runs of litgpt and torchtune (lengths of the batches), IA3, prefix tuning and other adapters (their settings), FLUX (its encoders), Mask R-CNN (the most of an epoch of COCO with PyTorch 1.1, 5,530 MiB, of which 2,963 are emulated with seven objects in an image and 3,202 with 93), spiking networks (which kernels held what), DINO (eight processes), DenseNet with recomputation (a context that nobody read, PyTorch of 2017), Liger's own kernels (Triton), quantised bases and optimizers of bitsandbytes (the libraries around them; since 0.46 it brings fake kernels, and a state of 8 bits is predicted as one byte for each weight), CUDA graphs (refused).
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
