"""How exact predictions are: the emulated GPU against published measurements on real ones.

    python benchmarks/prediction_accuracy.py            a sixth of the timm rows, and all others
    python benchmarks/prediction_accuracy.py --all      everything; about an hour on one core
    python benchmarks/prediction_accuracy.py --write    also writes docs/prediction-accuracy.md
    python benchmarks/prediction_accuracy.py --known    what was run before, with the rules of now
    python benchmarks/prediction_accuracy.py --evidence docs/evidence/CARD-DATE
                                                        only compares what was measured on a GPU of ours

The figures are in ``measured/``, the programs behind them in `published_programs`. Every case trains a few steps in a
forked process under the emulation; its trace is kept (``--fresh`` forgets them), and a change of the allocator's rules
or of the workspaces of convolutions only replays the traces. How many traces an emulation has made that has changed
since is told, and stands on the page: once such traces hid for hours that SiLU was taken apart.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from accuracy_page import held_out, page, tables  # noqa: E402
from accuracy_rows import Case, Row, cases  # noqa: E402
from gpu_evidence.calibration import comparisons, read_evidence, table_of  # noqa: E402

from colocate.plan.context_reading import CUDNN_ADDS_MOST_BYTES, VARIES_BYTES  # noqa: E402
from colocate.probe.virtual_gpu import allocator, convolutions  # noqa: E402
from colocate.probe.virtual_gpu.trace import AllocationTrace, no_workspace, replay  # noqa: E402
from colocate.units import MIB  # noqa: E402
from colocate.verdict.evidence import Allocator  # noqa: E402
from colocate.verdict.predicted_peak import allocator_range  # noqa: E402

PAGE = ROOT / "docs" / "prediction-accuracy.md"

# Folders with what the record of a program names or needs (pip install --target), by the start of program and model.
LIBRARIES = {
    "language ": "TRANSFORMERS_4_51_3",
    "attention BERT": "TRANSFORMERS_4_42_4",
    "attention DistilBERT": "TRANSFORMERS_4_46_3",
    "attention OPT": "TRANSFORMERS_4_46_3",
    "attention pythia": "TRANSFORMERS_4_42_4",
    "adapters ": "PEFT_0_21",
    "low_bit ": "TORCHAO_0_18",
}

# The context on the machine of the Hugging Face measurements, given on the same page: a V100 in January 2022.
BERT_CONTEXT_MIB = 1343


@dataclass(frozen=True)
class Found:
    """What the emulation said, in bytes, each also with the workspaces that there could be; ``kind`` of network."""

    allocated: int
    reserved: int
    allocated_bound: int
    reserved_bound: int
    kind: str


# --- running them -----------------------------------------------------------------------------------------------------


def train(case: Case, folder: str) -> None:
    """Train a few steps of a case on a bottomless virtual GPU, in a process of its own, and write the trace."""
    leave = os._exit  # the emulation writes a list of all packages before it lets a process end
    os.environ["COLOCATE_TRACE"] = "1"
    for start, name in LIBRARIES.items():
        if f"{case.program} {case.model}".startswith(start):
            sys.path.insert(0, os.environ[name])
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
            path.with_suffix(".emulation").write_text(emulation())
    rules = b"".join(Path(str(module.__file__)).read_bytes() for module in (allocator, convolutions))
    known = kept / f"{case.key}-{hashlib.sha256(rules + str(path.stat().st_mtime_ns).encode()).hexdigest()[:8]}.json"
    if not known.is_file():
        trace = AllocationTrace.read(path)
        bare, with_workspaces = replay(trace, no_workspace), replay(trace, convolutions.workspace_bound)
        figures = [one.highest for both in (bare, with_workspaces) for one in (both.allocated, both.reserved)]
        known.write_text(json.dumps([*figures, kind_of(trace.convolutions)]))
    return Found(*json.loads(known.read_text()))


def emulation() -> str:
    """What decides about a trace, but for the programs: a hash of the emulation's sources."""
    files = sorted(Path(str(allocator.__file__)).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def outdated(results: dict[Case, Found], kept: Path) -> int:
    """How many traces were made by an emulation that has changed since."""
    made_by = (kept / f"{case.key}.emulation" for case in results)
    return sum(not one.is_file() or one.read_text() != emulation() for one in made_by)


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


def compared(results: dict[Case, Found]) -> list[Row]:
    """All cases.

    The context and rest of the GPUs of timm and of the perceptrons, which nobody read, are one constant each: the
    median gap of the half of the models that a hash of their names picks. Around them is what a user gets that has
    read a context without cuDNN, which that of the perceptrons stands for.
    """
    gaps: dict[str, list[float]] = {"timm_script": [], "mlp": []}
    for case, one in results.items():
        if case.program in gaps and int(hashlib.sha256(case.model.encode()).hexdigest(), 16) % 2:
            gaps[case.program].append(case.measured_mib - one.reserved / MIB)
    timm, bare = (round(statistics.median(some)) * MIB if some else 0 for some in gaps.values())
    contexts = {
        "bert_large": (BERT_CONTEXT_MIB * MIB,) * 3,
        "mlp": (bare - VARIES_BYTES, bare, bare + VARIES_BYTES),
        "timm_script": (bare - VARIES_BYTES, timm, bare + CUDNN_ADDS_MOST_BYTES),
    }
    return [_row(case, one, contexts.get(case.program, (0, 0, 0))) for case, one in results.items()]


def _row(case: Case, one: Found, context: tuple[int, int, int]) -> Row:
    """The range that a user is shown, with what the context may be: at least, expected and at most, in bytes."""
    allocated = case.quantity == "allocated"
    least, expected, most = context
    shown = allocator_range(
        Allocator(
            pid=1,
            mode="virtual",
            max_allocated_bytes=one.allocated,
            max_reserved_bytes=one.allocated if allocated else one.reserved,
            max_reserved_bound_bytes=one.allocated_bound if allocated else one.reserved_bound,
            context_bytes=expected,
            context_range_bytes=(least, most),
            convolutions=bool(one.kind),
            compiled="compiled" in case.family,
            half=case.dtype not in ("fp32", ""),
        )
    )
    assert shown is not None
    family = f"timm, {one.kind} convolutions" if case.family == "timm" else case.family
    low, middle, high = (size / MIB for size in (shown.low_bytes, shown.expected_bytes, shown.high_bytes))
    return Row(case, family, low, middle, high)


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
                f"{len(errors)} x {kind}: median error {median:.1%}, worst {worst:.1%}, "
                f"{held.count('yes')} intervals held, {held.count('above')} needed more"
            )


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
    results = all_found(wanted[part::parts], kept, options.fresh)
    rows, old = compared(results), outdated(results, kept)
    print("\n".join([*tables(rows), "", *held_out(rows)]))
    print(f"{old} of {len(rows)} traces were made by an earlier state of the emulation", file=sys.stderr)
    if options.write:
        PAGE.write_text(page(rows, len(everything), old))


if __name__ == "__main__":
    main()
