import os
import subprocess

import pytest
import reliability
from fake_nvml import MIB, preload
from fake_nvml.build import build_cuda, build_library, compiler
from hypothesis import HealthCheck, settings
from members import beginning
from seen import SEEN
from sessions import simulated_machine

for name in ("GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS"):  # sessions of the tests are no part of the job that runs them
    os.environ.pop(name, None)
os.environ["XDG_CONFIG_HOME"] = os.devnull  # no GPUs of whoever runs the tests
os.environ.pop(
    "PYTHONDONTWRITEBYTECODE", None
)  # else each of many hundred processes compiles colocate again, for a second

settings.register_profile("any load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any load")  # how long an example takes tells how busy the machine is, and nothing of the code


def pytest_configure(config):
    """Turn every warning into an error: in the project's own tests, not in what people run with it."""
    config.addinivalue_line("filterwarnings", "error")


LONGEST = (
    *("test_slurm.py", "test_faults.py", "test_fit.py", "test_emulation.py", "test_hostile.py", "test_retries.py"),
    *("test_group_run.py", "test_soak.py", "test_faults_session.py", "test_workloads.py", "test_plugin.py"),
    *("test_foreign_programs.py", "test_resume.py", "test_session.py", "test_gpu_evidence.py", "test_coverage.py"),
    *("test_docs_commands.py", "test_plugin_workers.py", "test_merge.py", "test_pairs.py", "test_measured_faults.py"),
    "test_completeness.py",
)
"""The files that take longest, first: a worker that begins one at the end would leave the others without work."""


def pytest_collection_modifyitems(items):
    """Begin with the longest files; ``scripts/test`` tells xdist to keep this order."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


PASSED: dict[str, list[str]] = {}
"""What every test that passed has seen; in the controller or the only process."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Send what a test saw with its report, and let no fault pass for a group that fits."""
    if call.when == "setup":
        SEEN.clear()
    report = yield
    if call.when == "call":
        report.user_properties += [("seen", text) for text in SEEN]
        wrong = reliability.feasible_by_mistake(item.nodeid, SEEN)
        if report.passed and wrong:
            report.outcome, report.longrepr = "failed", wrong
    return report


def pytest_runtest_logreport(report):
    """Keep what the tests saw."""
    if report.when == "call" and report.passed:
        PASSED[report.nodeid] = [text for name, text in report.user_properties if name == "seen"]


def pytest_sessionfinish(session):
    """Rewrite the page where that is asked for: WRITE_RELIABILITY=1 scripts/test."""
    if os.environ.get("WRITE_RELIABILITY") and not hasattr(session.config, "workerinput"):
        reliability.write_page(PASSED)


@pytest.fixture(scope="session")
def fake_nvml_library(tmp_path_factory):
    """The fake libnvidia-ml.so.1, compiled and loaded into this process in place of a driver's."""
    if compiler() is None:
        pytest.skip("no C compiler to build the fake NVML library with")
    library = build_library(tmp_path_factory.mktemp("fake_nvml"))
    preload(library)
    return library


@pytest.fixture
def fake_machine(fake_nvml_library, tmp_path, monkeypatch):
    """A simulated machine without GPUs, seen by this process and by its children."""
    with simulated_machine(tmp_path, fake_nvml_library, monkeypatch) as fake:
        yield fake


@pytest.fixture
def fake_nvml(fake_machine):
    """A simulated machine with one GPU of 8192 MiB, of which the driver keeps 200."""
    fake_machine.add_gpu()
    return fake_machine


@pytest.fixture(scope="session")
def fake_cuda_library(tmp_path_factory):
    """The fake libcuda.so.1, compiled; programs find it only where a test asks for `fake_cuda`."""
    if compiler() is None:
        pytest.skip("no C compiler to build the fake CUDA driver with")
    return build_cuda(tmp_path_factory.mktemp("fake_cuda"))


@pytest.fixture
def fake_cuda(fake_machine, fake_cuda_library, monkeypatch):
    """A simulated machine without GPUs whose programs find a CUDA driver too."""
    folders = f"{fake_cuda_library.parent}:{os.environ['LD_LIBRARY_PATH']}"
    monkeypatch.setitem(os.environ, "LD_LIBRARY_PATH", folders)
    return fake_machine


@pytest.fixture
def large_gpu(fake_cuda):
    """That machine with a GPU of 81559 MiB, as an H100 has, of which the driver keeps 559."""
    fake_cuda.add_gpu(name="NVIDIA H100 80GB HBM3 (simulated)", total_bytes=81559 * MIB, reserved_bytes=559 * MIB)
    return fake_cuda


@pytest.fixture
def foreign_process():
    """The pid of a process that is none of ours; it ends with the test."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


@pytest.fixture
def cookie(tmp_path):
    """The mark of this test's trainings."""
    return f"test-{os.getpid()}/{tmp_path.name}/foreground"


@pytest.fixture
def begin(tmp_path, cookie):
    """Starts a member program in one of its modes."""
    with beginning(tmp_path, cookie) as begin:
        yield begin
