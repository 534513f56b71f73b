"""``train --config RUN``: a run once more, from what its folder says of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from benchmarks.folder import RUN, read_json, read_spec
from benchmarks.provenance import DECIDES, provenance
from benchmarks.settings import RunSpec
from benchmarks.train import Writing, train_spec
from diffusion_gym.rewards import file_digests


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """Repeat a run: the same configuration, task, seed, budget and number of threads, in a folder of its own."""

    config: Annotated[Path, tyro.conf.arg(metavar="RUN")]
    """The run's folder, or its run.json."""
    folder: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: runs/NAME-repeat)")] = (
        None
    )
    """Where the repetition goes. An interrupted one there is resumed."""
    writing: tyro.conf.OmitArgPrefixes[Writing] = field(default_factory=Writing)
    """What is written beside the log; threads 0 takes as many as the run had."""


def repeat(options: Repeat) -> int:
    """Run what the folder describes; returns the exit status (130 after Ctrl-C)."""
    source = options.config.parent if options.config.name == RUN else options.config
    if not (source / RUN).is_file():
        raise ValueError(
            f"{str(options.config)!r} is no run; expected a folder written by train or compare, or its {RUN}."
        )
    spec, data = read_spec(source), read_json(source / RUN)
    folder = options.folder or Path("runs") / f"{source.resolve().name}-repeat"
    if folder.resolve() == source.resolve():
        raise ValueError(f"{str(folder)!r} is the run that is to be repeated. Choose another --folder.")
    made_by = data.get("provenance", {})
    threads = options.writing.threads or made_by.get("torch_threads") or torch.get_num_threads()
    print(f"repeating {source}")
    for line in differences(data, spec, threads):
        print(f"  not as it was: {line}")
    return train_spec(spec, folder, options.writing, threads)


def differences(data: dict[str, Any], spec: RunSpec, threads: int) -> list[str]:
    """Return what differs between the machine, versions and reward files of a recorded run and the present ones."""
    then, now = data.get("provenance", {}), {**provenance(), "torch_threads": threads}
    told = []
    for name in DECIDES:
        before, after = then.get(name), now[name]
        if isinstance(after, dict) and isinstance(before, dict):
            changed = {key: (before.get(key), after[key]) for key in after if before.get(key) != after[key]}
            told += [f"{key} {was}, now {is_}" for key, (was, is_) in changed.items()]
        elif before != after:
            told.append(f"{name} {before}, now {after}")
    digests = {version["path"]: version["sha256"] for version in data.get("reward_files", [])}
    told += [
        f"the reward file {path}, which has changed"
        for path, digest in file_digests(spec.task.reward).items()
        if digests.get(path, digest) != digest
    ]
    return told
