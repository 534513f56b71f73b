"""The one training loop of all stages: AdamW, warm-up and cosine decay, averaged weights, resumable checkpoints."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from algorithms.checkpoints.published import write_atomically
from benchmarks.pretrain.config import Schedule as Schedule
from benchmarks.runs.folder import read_json, write_json
from benchmarks.runs.stopping import Stopped, StopSignal


class Average:
    """An exponential moving average of a module's parameters, with a short memory while it is young."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the module's present parameters."""
        self.decay = decay
        self.parameters = [parameter.detach().clone() for parameter in model.parameters()]

    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the module's parameters after optimiser step ``step``."""
        decay = min(self.decay, (1.0 + step) / (10.0 + step))
        torch._foreach_lerp_(self.parameters, [parameter.detach() for parameter in model.parameters()], 1.0 - decay)

    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the module's parameters with the average."""
        with torch.no_grad():
            for parameter, average in zip(model.parameters(), self.parameters, strict=True):
                parameter.copy_(average)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the random stream of one step, so that a resumed run draws what an uninterrupted one does."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def mixed_precision() -> torch.autocast:
    """Return bfloat16 autocast where the CPU computes in it, 1.3 to 1.4 times as fast, and else one that does nothing.

    Without AVX-512 torch emulates bfloat16: a training step took 14 times as long as in float32 (AVX2, one thread).
    """
    native = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.autocast("cpu", torch.bfloat16, enabled=native)


def save_atomically(state: dict[str, object], path: Path) -> None:
    """Write ``state`` with ``torch.save`` so that an interruption leaves the old file or the new one."""
    write_atomically(path, lambda file: torch.save(state, file))


def optimise(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    schedule: Schedule,
    checkpoint: Path,
    save_every_seconds: float = 180.0,
) -> float:
    """Train ``model`` in place on ``loss(step)``; ends with the averaged weights in it.

    Args:
        model: all modules to train, as one module.
        loss: draws its own batch from :func:`step_generator` and returns a scalar.
        schedule: steps, learning rate, averaging (the batch is the loss's affair).
        checkpoint: where the state is kept; a state found there is resumed. Its stem names the progress bar.
        save_every_seconds: wall time between two checkpoints.

    Returns:
        Seconds of wall time spent in training, those before an interruption included.

    Raises:
        Stopped: after Ctrl-C or SIGTERM; the state is kept.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=schedule.lr, betas=(0.9, 0.99), weight_decay=0.01)
    average = Average(model, schedule.ema_decay) if schedule.ema_decay > 0.0 else None
    start, begun = 0, time.monotonic()
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
        begun -= state["seconds"]
        if average is not None:
            average.parameters = state["average"]

    def save(step: int) -> None:
        averaged = average.parameters if average is not None else []
        weights = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "average": averaged}
        save_atomically(weights | {"step": step, "seconds": time.monotonic() - begun}, checkpoint)

    model.train()
    smooth, saved = None, time.monotonic()
    bar = tqdm(range(start, schedule.steps), initial=start, total=schedule.steps, desc=checkpoint.stem, mininterval=2.0)
    with StopSignal("a checkpoint is written after this step") as stop:
        for step in bar:
            for group in optimiser.param_groups:
                group["lr"] = schedule.lr_at(step)
            value = loss(step)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            if average is not None:
                average.update(model, step)
            smooth = value.item() if smooth is None else 0.98 * smooth + 0.02 * value.item()
            bar.set_postfix_str(f"loss {smooth:.4f}", refresh=False)
            if stop() or time.monotonic() - saved > save_every_seconds or step + 1 == schedule.steps:
                save(step + 1)
                saved = time.monotonic()
            if stop():
                raise Stopped("stopped; the same command resumes.", stop.status)
    if average is not None:
        average.copy_to(model)
    model.eval()
    return time.monotonic() - begun


def run_stage(work: Path, name: str, module: nn.Module, train: Callable[[Path], float]) -> None:
    """Fill ``module`` with a finished stage's weights from ``work``, training them first if there are none.

    ``train`` gets the path of the stage's checkpoint and returns its seconds, which are kept beside the weights.
    """
    weights = work / f"{name}.weights.pt"
    if not weights.is_file():
        seconds = train(work / f"{name}.pt")
        (work / f"{name}.minutes.json").write_text(json.dumps(round(seconds / 60, 1)), encoding="utf-8")
        save_atomically(module.state_dict(), weights)
    module.load_state_dict(torch.load(weights, weights_only=True))
    module.eval()


def describe_stage(work: Path, name: str, schedule: Schedule) -> dict[str, float]:
    """Return a finished stage's steps, batch, learning rate and minutes, for the card."""
    minutes = json.loads((work / f"{name}.minutes.json").read_text(encoding="utf-8"))
    return {"steps": schedule.steps, "batch": schedule.batch, "lr": schedule.lr, "minutes": minutes}


def claim(file: Path, wanted: dict[str, Any]) -> None:
    """Write the settings of a work folder's stages, or refuse a folder whose stages were made with other settings.

    Raises:
        ValueError: they were; the stages would be taken over silently.
    """
    wanted = json.loads(json.dumps(wanted))
    if file.is_file():
        found = read_json(file)
        changed = sorted(name for name in wanted if found.get(name) != wanted[name])
        if changed:
            raise ValueError(
                f"{str(file.parent)!r} holds stages made with another {', '.join(changed)}; choose another work "
                "folder, or delete it."
            )
    write_json(file, wanted)
