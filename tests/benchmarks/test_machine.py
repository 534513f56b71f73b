"""What a sweep takes of the machine: within quotas and memory, one run a GPU; the files are made up here."""

import os
from pathlib import Path

import psutil
import pytest

import benchmarks.sweeps.local_pool
from algorithms import ALGORITHMS, EvaluationConfig
from algorithms.config.base import override
from benchmarks.machine import available_cores, available_gpus, available_memory
from benchmarks.runs.spec import RunSpec, TaskConfig
from benchmarks.sweeps.local_pool import LocalPool, local_pool, processes_held
from benchmarks.sweeps.sweep import run_all

GB = 10**9


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen cores and 64 GB, whatever machine this is."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 64 * GB}))


def root_of(folder: Path, group: str, files: dict[str, str]) -> Path:
    """Write ``/proc/self/cgroup`` and files below ``/sys/fs/cgroup``; returns the root."""
    for name, text in {
        "proc/self/cgroup": group,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{text}\n")
    return folder


V2, V1 = "0::/jobs/one", "3:memory:/jobs/one\n2:cpu,cpuacct:/jobs/one\n0::/"


@pytest.mark.parametrize(
    ("group", "files", "cores"),
    [
        (V2, {}, 16),
        (V2, {"jobs/one/cpu.max": "max 100000"}, 16),
        (V2, {"jobs/one/cpu.max": "350000 100000"}, 3),
        (V2, {"jobs/one/cpu.max": "800000 100000", "jobs/cpu.max": "200000 50000"}, 4),
        (V2, {"jobs/one/cpu.max": "50000 100000"}, 1),
        (V2, {"cpu.max": "200000 100000"}, 2),  # a container that knows its group by a path outside
        (V2, {"other/cpu.max": "100000 100000"}, 16),
        (V1, {"cpu/jobs/one/cpu.cfs_quota_us": "-1", "cpu/jobs/one/cpu.cfs_period_us": "100000"}, 16),
        (V1, {"cpu/jobs/one/cpu.cfs_quota_us": "250000", "cpu/jobs/one/cpu.cfs_period_us": "100000"}, 2),
    ],
)  # fmt: skip
def test_cores_are_those_of_the_affinity_within_the_quota(
    tmp_path: Path, group: str, files: dict[str, str], cores: int
) -> None:
    assert available_cores(root_of(tmp_path, group, files)) == cores


def test_affinity_limits_a_larger_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert available_cores(root_of(tmp_path, V2, {"jobs/one/cpu.max": "800000 100000"})) == 2


@pytest.mark.parametrize(
    ("group", "files", "memory"),
    [
        (V2, {}, 64 * GB),
        (V2, {"jobs/one/memory.max": "max", "jobs/one/memory.current": "5"}, 64 * GB),
        (V2, {"jobs/one/memory.max": str(8 * GB), "jobs/one/memory.current": str(3 * GB)}, 5 * GB),
        (
            V2,
            {
                "jobs/memory.max": str(8 * GB),
                "jobs/memory.current": str(7 * GB),
                "jobs/memory.stat": f"anon {3 * GB}\ninactive_file {4 * GB}",
            },
            5 * GB,
        ),
        (V2, {"jobs/one/memory.max": str(2 * GB), "jobs/one/memory.current": str(3 * GB)}, 0),
        (
            V1,
            {
                "memory/jobs/one/memory.limit_in_bytes": str(8 * GB),
                "memory/jobs/one/memory.usage_in_bytes": str(6 * GB),
                "memory/jobs/one/memory.stat": f"cache {2 * GB}\ntotal_inactive_file {GB}",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": str(20 * GB),
            },
            3 * GB,
        ),
    ],
)  # fmt: skip
def test_memory_is_what_system_and_group_have_left(
    tmp_path: Path, group: str, files: dict[str, str], memory: int
) -> None:
    assert available_memory(root_of(tmp_path, group, files)) == memory


def test_a_system_without_these_files_has_all_of_its_cores_and_memory(tmp_path: Path) -> None:
    assert (available_cores(tmp_path), available_memory(tmp_path)) == (16, 64 * GB)


@pytest.mark.parametrize(
    ("variable", "count", "gpus"),
    [
        (None, 0, ()),
        (None, 2, ("0", "1")),
        ("", 0, ()),
        ("3, 1", 2, ("3", "1")),
        ("GPU-8932f937,GPU-11f0", 2, ("GPU-8932f937", "GPU-11f0")),
        ("2,-1,0", 1, ("2",)),  # CUDA sees nothing behind one that it does not know
        ("MIG-a,MIG-b", 1, ("MIG-a", "MIG-b")),
    ],
)
def test_gpus_are_handed_out_as_the_variable_names_them(
    variable: str | None, count: int, gpus: tuple[str, ...]
) -> None:
    assert available_gpus({} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}, count) == gpus


def test_the_machine_holds_as_many_runs_as_cores_and_memory() -> None:
    assert processes_held(threads=1, cores=16, memory=64 * GB) == 16
    assert processes_held(threads=6, cores=16, memory=64 * GB) == 2
    assert processes_held(threads=1, cores=16, memory=7 * GB) == 4
    assert processes_held(threads=4, cores=2, memory=0) == 1


def spec_of(device: str, reward: str = "exact-linear", seed: int = 0) -> RunSpec:
    changes = {"images_per_iteration": 4, "num_envs": 4, "updates_per_iteration": 1, "trainable": "full"}
    config = override(ALGORITHMS["ddpo-is"].config, seed=seed, evaluation=EvaluationConfig(images=4), **changes)
    return RunSpec("ddpo-is", config, TaskConfig("exact-gaussian", reward, num_inference_steps=2, device=device), 4)


@pytest.mark.parametrize(
    ("devices", "asked", "processes", "gpus"),
    [
        (["cpu", "cpu"], 0, 4, ()),
        (["cpu"], 9, 9, ()),
        (["cuda"], 0, 2, ("2", "3")),
        (["cuda", "cpu"], 5, 5, ("2", "3")),
        (["cuda:1"], 0, 1, ()),  # says itself which
    ],
)
def test_a_pool_takes_what_the_machine_has(
    monkeypatch: pytest.MonkeyPatch, devices: list[str], asked: int, processes: int, gpus: tuple[str, ...]
) -> None:
    monkeypatch.setattr(benchmarks.sweeps.local_pool, "available_gpus", lambda: ("2", "3"))
    monkeypatch.setattr(benchmarks.sweeps.local_pool, "available_memory", lambda: 6 * GB)
    monkeypatch.setattr(benchmarks.sweeps.local_pool, "available_cores", lambda: 16)
    with local_pool([spec_of(device) for device in devices], asked, 1) as pool:
        assert (pool.processes, pool.gpus) == (processes, gpus)


def test_without_a_gpu_one_run_after_the_other_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the run's own error that names the missing device."""
    monkeypatch.setattr(benchmarks.sweeps.local_pool, "available_gpus", lambda: ())
    with local_pool([spec_of("cuda")], 0, 1) as pool:
        assert (pool.processes, pool.gpus) == (1, ())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="reads what a process began with from /proc")
def test_each_process_sees_its_own_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes share two GPUs in turn; in each the variable is there before anything is imported."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,GPU-b")
    reward = tmp_path / "reward.py"
    reward.write_text(
        "import os, pathlib, torch\n\n"
        "SEEN = pathlib.Path('/proc/self/environ').read_bytes().split(b'\\0')\n\n"
        "def seen(images, prompts):\n"
        "    assert f'CUDA_VISIBLE_DEVICES={os.environ[\"CUDA_VISIBLE_DEVICES\"]}'.encode() in SEEN\n"
        f"    file = pathlib.Path({str(tmp_path)!r}) / f'gpu-{{os.getpid()}}'\n"
        "    file.write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "    return torch.zeros(len(prompts))\n"
    )
    plan = {f"seen/ddpo-is/seed-{seed}": spec_of("cpu", f"{reward}:seen", seed) for seed in range(3)}
    gpus = available_gpus(count=2)
    assert run_all(plan, tmp_path / "runs", LocalPool(3, 1, gpus)) == {}
    assert sorted(file.read_text() for file in tmp_path.glob("gpu-*")) == ["7", "7", "GPU-b"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7,GPU-b"
