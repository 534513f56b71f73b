"""``train --config RUN``: repeat a run from its folder, as it was or with other options."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from algorithms import AlgorithmConfig
from benchmarks.commands.train import Output, Train, forecast_spec, threads_of, train_spec
from benchmarks.provenance import DECIDES, provenance
from benchmarks.runs.folder import RUN, holds_run, read_json, read_spec
from benchmarks.runs.resuming import changes
from benchmarks.runs.spec import RunSpec
from diffusion_gym.naming import file_name
from diffusion_gym.paths import user_path
from diffusion_gym.rewards import file_digests

CONFIG = "--config"


def take_config(words: Sequence[str]) -> tuple[Path, list[str]]:
    """Return the run that ``--config`` names in a command line, and the other words; raise ValueError for no name."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(CONFIG, nargs="?", action="append")
    found, others = parser.parse_known_args(words)
    if len(found.config) > 1 or not found.config[0]:
        raise ValueError(f"expected one run's folder, or its {RUN}, behind {CONFIG}: train {CONFIG} RUN.")
    return user_path(found.config[0]), others


def recorded(config: Path) -> tuple[str, Train[AlgorithmConfig]]:
    """Return a run's algorithm, and the options that repeat it, with as many threads as it had."""
    source = _source(config)
    if not holds_run(source):
        raise ValueError(f"{str(config)!r} is no run; expected a folder written by train or compare, or its {RUN}.")
    spec, made_by = read_spec(source), read_json(source / RUN).get("provenance", {})
    output = Output(reward_queries=spec.reward_queries, threads=made_by.get("torch_threads") or torch.get_num_threads())
    return spec.algorithm, Train(task=spec.task, output=output, safeguards=spec.safeguards, algorithm=spec.config)


def repeat(config: Path, name: str, options: Train[AlgorithmConfig]) -> int:
    """Run what the folder describes, with the options' changes, after which the default folder is named."""
    source, spec = _source(config), options.spec(name)
    changed = changes(read_spec(source).to_json(), spec.to_json())
    what = ",".join(f"{key.rpartition('.')[2]}={now}" for key, (_, now) in changed.items())
    folder = options.output.folder or Path("runs") / f"{source.resolve().name}-{file_name(what or 'repeat')}"
    if folder.resolve() == source.resolve():
        raise ValueError(f"{str(folder)!r} is the run that is to be repeated. Choose another --folder.")
    print(f"repeating {source}")
    lines = [f"{key} {before}, now {now}" for key, (before, now) in changed.items()]
    for line in [*lines, *differences(read_json(source / RUN), spec, threads_of(options.output))]:
        print(f"  not as it was: {line}")
    return forecast_spec(spec, options.output) if options.output.dry_run else train_spec(spec, folder, options.output)


def _source(config: Path) -> Path:
    return config.parent if config.name == RUN else config


def differences(data: dict[str, Any], spec: RunSpec, threads: int) -> list[str]:
    """Return what differs between a recorded run's machine, versions and reward files and the present ones."""
    then = data.get("provenance", {})
    now: dict[str, Any] = {name: {**provenance(), "torch_threads": threads}[name] for name in DECIDES}
    before = {name: then.get(name) for name in now} | {"packages": then.get("packages") or {}}
    lines = [f"{key.removeprefix('packages.')} {was}, now {is_}" for key, (was, is_) in changes(before, now).items()]
    digests = {version["path"]: version["sha256"] for version in data.get("reward_files", [])}
    changed = [path for path, new in file_digests(spec.task.reward).items() if digests.get(path, new) != new]
    return [*lines, *(f"the reward file {path}, which has changed" for path in changed)]
