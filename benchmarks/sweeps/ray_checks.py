"""Checks of a Ray cluster before any run begins: can it be reached, has it the resources, does it see the folder?"""

import socket
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.runs.spec import RunSpec
from benchmarks.sweeps.sweep import last_line

_CONNECT_SECONDS, _PROBE_SECONDS = 5.0, 300.0
#: One of ``ray.nodes()``.
Node = Mapping[str, Any]


def check_reachable(address: str) -> None:
    """Raise ValueError if nothing answers at the head's port; Ray itself would try for minutes."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise no_cluster(address, error) from error


def no_cluster(address: str, error: Exception) -> ValueError:
    """Return the error for an address without a cluster."""
    return ValueError(f"no Ray cluster at {address!r}: {error}. Expected HOST:PORT of a running head, auto, or local.")


def resources(spec: RunSpec, threads: int) -> dict[str, int]:
    """Return what a run asks of a node, as Ray names it; "auto" asks for no GPU."""
    return {"CPU": threads, "GPU": 0 if spec.task.device in ("cpu", "auto") else 1}


def check_resources(specs: Collection[RunSpec], threads: int, nodes: Sequence[Node]) -> list[Node]:
    """Return those of ``ray.nodes()`` that can take one of the runs.

    Raise ValueError if none has enough for a run; Ray would wait for one without end, and say nothing.
    """
    alive = [node for node in nodes if node["Alive"]]
    able: dict[str, Node] = {}
    for device, spec in {spec.task.device: spec for spec in specs}.items():
        asked = resources(spec, threads)
        found = [node for node in alive if all(node["Resources"].get(name, 0) >= asked[name] for name in asked)]
        if not found:
            having = [tuple(node["Resources"].get(name, 0) for name in ("GPU", "CPU")) for node in alive] or [(0, 0)]
            gpus, cpus = max(having, key=lambda one: (min(one[0], asked["GPU"]), one[1]))
            raise ValueError(
                f"a run on {device!r} with {threads} thread(s) asks for {asked['CPU']} CPU(s) and {asked['GPU']} "
                f"GPU(s) of one node; the largest of the {len(alive)} node(s) of the Ray cluster has {cpus:g} CPU(s) "
                f"and {gpus:g} GPU(s). Lower --threads, or start a node that has them before the sweep."
            )
        able |= {node["NodeID"]: node for node in found}
    return list(able.values())


def check_folder(ray: Any, folder: Path, nodes: Sequence[Node]) -> None:
    """Raise ValueError if a node does not see a file that is written into the folder, or cannot begin a run.

    A run would notice only after training.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folder.mkdir(parents=True, exist_ok=True)
    probe = folder.resolve() / f".seen-by-ray-{uuid.uuid4().hex}"
    probe.touch()
    try:
        answers = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_sees)
            answers[f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"] = task.remote(str(probe))
        blind = [name for name, answer in answers.items() if not _answer(ray, name, answer)]
    finally:
        probe.unlink()
    if blind:
        raise ValueError(
            f"{', '.join(blind)} cannot see what this machine writes into {str(folder)!r}; give --folder a place on a "
            "file system that all nodes of the Ray cluster share, under the same path."
        )


def _answer(ray: Any, node: str, answer: Any) -> bool:
    try:
        return ray.get(answer, timeout=_PROBE_SECONDS)
    except ray.exceptions.RayError as error:
        raise ValueError(
            f"the Ray node {node} cannot begin a run ({last_line(error)}). Each node needs this package in the same "
            "version, with its dependencies."
        ) from error


def _sees(file: str) -> bool:
    return Path(file).is_file()
