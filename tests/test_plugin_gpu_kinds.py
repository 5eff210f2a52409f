"""Plans across kinds of GPUs: each group on the GPU that it asks for, and on no other."""

import json

import pytest
from fake_nvml import MIB
from sessions import pair, plan, run
from stand_in_project import Project

from colocate.device.acquire import FoundGpu, as_asked
from colocate.plan.gpu_models import may_mean, satisfies
from colocate.plugin.slurm_requests import request_for
from colocate.process.slurm import Node
from colocate.units import GIB

SMALL, LARGE = "NVIDIA GeForce RTX 3080 (simulated)", "NVIDIA GeForce RTX 3090 (simulated)"


@pytest.mark.parametrize(
    ("asked", "name", "gib", "fits"),
    [
        ("10GB", SMALL, 10, True),
        ("10GB", SMALL, 10.1, True),
        ("24GB", SMALL, 10, False),
        ("8GB", SMALL, 10, False),
        ("RTX 3080", SMALL, 10, True),
        ("rtx3080", SMALL, 10, True),
        ("NVIDIA GeForce RTX 3080", SMALL, 10, True),
        ("RTX 3080", "NVIDIA GeForce RTX 3080 Ti", 12, False),
        ("RTX 3080 Ti", "NVIDIA GeForce RTX 3080 Ti", 12, True),
        ("RTX 308", SMALL, 10, False),
        ("RTX 6000", "NVIDIA RTX 6000 Ada Generation", 48, False),
        ("A100", "NVIDIA A100-SXM4-80GB", 80, True),
        ("A100", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", 10, False),
        ("A100-SXM4-80GB MIG 1g.10gb", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", 10, True),
    ],
)
def test_a_gpu_is_what_a_group_asks_for(asked, name, gib, fits):
    assert satisfies(name, int(gib * GIB), asked) is fits


MEANT = {
    "a100": ("A100", "NVIDIA A100-SXM4-80GB", "40GB"),  # the last as what the table knows under this name
    "nvidia_a100-sxm4-80gb": ("A100", "80GB"),
    "1g.10gb": ("10GB",),
    "rtx_3080": ("RTX 3080", "10 GB"),
    "3080": ("RTX 3080",),
}
NOT_MEANT = {
    "nvidia_a100-sxm4-80gb": ("40GB",),
    "rtx3080": ("RTX 3080 Ti",),
    **dict.fromkeys(("rtx_3080_ti", "rtx", "ib"), ("RTX 3080",)),
    "v100": ("32GB",),
}


def test_a_word_of_a_cluster_may_mean_the_gpu_that_a_group_asks_for():
    assert {word: tuple(one for one in asked if may_mean(word, one)) for word, asked in MEANT.items()} == MEANT
    assert not [word for word, asked in NOT_MEANT.items() if any(may_mean(word, one) for one in asked)]


NODES = (
    Node("n1", 8, (("a100", 2), ("v100", 1))),
    Node("n2", 8, (("a100", 2),)),
    Node("n3", 8, (("", 4),), ("ib", "rtx3090")),
)
A100, V100, RTX = (("--gres=gpu:a100:1",), ("--gres=gpu:v100:1",), ("--constraint=rtx3090",))


def test_a_group_is_submitted_with_the_kind_of_gpu_that_it_asks_for():
    asked = {None: (), "A100": A100, "V100": V100, "24GB": RTX, "RTX 3090": RTX, "H100": ()}
    assert {one: request_for(NODES, one) for one in asked} == asked


def test_a_larger_gpu_is_a_smaller_one_only_where_the_option_says_so():
    large = FoundGpu("nvidia", "GPU-1", product="NVIDIA H100 80GB HBM3", memory_bytes=81559 * MIB)
    made = FoundGpu("nvidia", "GPU-1", 8 * GIB, product=large.product, memory_bytes=large.memory_bytes, given=True)

    assert as_asked(large, "8GB") is None
    assert as_asked(large, "80GB") is as_asked(large, "H100") is large
    assert as_asked(made, "8GB") is made
    assert as_asked(made, "H100") is as_asked(made, "80GB") is None


def test_a_virtual_gpu_is_made_as_asked_unless_the_option_says_what_it_is():
    virtual = FoundGpu("virtual", total_bytes=8 * GIB)
    given = FoundGpu("virtual", total_bytes=8 * GIB, given=True)

    assert as_asked(virtual, "24GB") == FoundGpu("virtual", total_bytes=24 * GIB, name="virtual 24 GB GPU")
    assert as_asked(virtual, "RTX 3090").name == "NVIDIA GeForce RTX 3090 (virtual)"
    assert as_asked(virtual, "some GPU") is None
    assert (as_asked(given, "24GB"), as_asked(given, "8GB")) == (None, given)


def asking(project, *wishes):
    """Groups that ask for a GPU each; None asks for none."""
    path = project.folder / "settings/parallel_feasibility_test.json"
    document = json.loads(path.read_text())
    for entry, wish in zip(document["experiments"], wishes, strict=True):
        entry |= {} if wish is None else {"gpu": wish}
    path.write_text(json.dumps(document))
    return project


@pytest.fixture
def mixed(fake_machine):
    """A machine with a GPU of 10 and one of 24 GB."""
    fake_machine.add_gpu(name=SMALL, total_bytes=10 * GIB)
    fake_machine.add_gpu(name=LARGE, total_bytes=24 * GIB)
    return fake_machine


def gpu_of(folder, group):
    return (folder / f"{group}.gpu").read_text()


@pytest.mark.slow
def test_every_worker_gets_only_groups_for_its_gpu_also_after_one_has_died(mixed, tmp_path):
    """The other worker is idle while the replacement comes, and does not take its groups."""
    small, large = mixed.uuid(0), mixed.uuid(1)
    project = Project(tmp_path, {"group01": "die"}, 5)
    asking(project, "24GB", "RTX 3090", "10GB", "24GB", None)
    found = project.run("feasibility", "--device=nvidia", "-n", "auto")

    assert dict(found.rows) == {"group01": "Error", **{f"group0{number}": "Passed" for number in range(2, 6)}}
    assert [gpu_of(tmp_path, f"group0{number}") for number in range(1, 5)] == [large, large, small, large]


@pytest.mark.slow
def test_one_worker_of_two_gpus_has_the_gpu_that_a_group_asks_for(mixed, tmp_path):
    project = asking(Project(tmp_path, {}, 2), "24GB", None)
    found = project.run("feasibility", "--device=nvidia", "-n1")

    assert dict(found.rows) == {"group01": "Passed", "group02": "Passed"}
    assert gpu_of(tmp_path, "group01") == gpu_of(tmp_path, "group02") == mixed.uuid(1)


@pytest.mark.slow
def test_trainings_run_on_the_gpu_of_their_group_and_one_without_is_not_started(fake_machine, tmp_path):
    """A whole GPU and an instance of another, which is no GPU itself."""
    fake_machine.add_gpu(name=SMALL, total_bytes=10 * GIB)
    fake_machine.add_gpu(name="NVIDIA A100-SXM4-80GB (simulated)", total_bytes=80 * GIB)
    fake_machine.add_instance("2g.20gb", total_bytes=20 * GIB, parent=1)
    entries = [pair(gpu="20GB", limit="9GB"), pair(gpu="A100"), pair(gpu="RTX 3080")]
    session = run(plan(tmp_path / "plan.json", entries), tmp_path, "--device=nvidia")
    devices = {}
    for path in session.run.glob("*/experiment.json"):
        document = json.loads(path.read_text())
        devices[document["group"]["id"]] = (document["group"]["gpu"], document["evidence"]["device"]["uuid"])

    assert session.code == 1, session.output
    assert devices == {"group01": ("20GB", fake_machine.uuid(2)), "group03": ("RTX 3080", fake_machine.uuid(0))}
    assert {name: found["outcome"] for name, found in session.verdicts.items()} == {
        "group01": "FEASIBLE",
        "group03": "FEASIBLE",
    }
    assert session.junit["group02"] == "error"
    assert "the group asks for a GPU 'A100', found " in session.output
    assert "[no_such_gpu]" in session.output
