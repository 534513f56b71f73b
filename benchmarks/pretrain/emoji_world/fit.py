"""The training loop of emoji-world's stages: on a CPU step by step, on a GPU as one CUDA graph a step."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.pretrain.emoji_world.config import Stage


def autocast(device: torch.device) -> torch.autocast:
    """Return bfloat16 autocast where the device computes in it, and else one that does nothing."""
    fast = device.type == "cuda" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


class Trainer:
    """One part in training: its optimiser, its averaged weights, and the step that updates both."""

    def __init__(self, module: nn.Module, loss: Callable[[], Tensor], stage: Stage, device: torch.device) -> None:
        """``loss`` draws its own batch on the device; nothing in it may wait for the GPU."""
        self.module, self.loss, self.stage, self.device = module, loss, stage, device
        self.names = [name for name, value in module.named_parameters() if value.requires_grad]
        self.weights: list[Tensor] = [value for value in module.parameters() if value.requires_grad]
        self.mean = [value.detach().clone() for value in self.weights]
        cuda = device.type == "cuda"
        self.pull = torch.tensor(0.1, device=device)
        lr = torch.tensor(1e-6, device=device) if cuda else 1e-6  # a graph reads the rate from the GPU's memory
        self.optimiser = torch.optim.AdamW(
            self.weights, lr=lr, betas=(0.9, 0.99), weight_decay=0.01, capturable=cuda, foreach=True
        )
        self.last = torch.zeros((), device=device)
        self.step = self._graph() if cuda else self._step

    def _step(self) -> None:
        """Update the weights and their average once."""
        self.optimiser.zero_grad(set_to_none=True)
        with autocast(self.device):
            value = self.loss()
        value.backward()
        nn.utils.clip_grad_norm_(self.weights, 1.0, foreach=True)
        self.optimiser.step()
        with torch.no_grad():
            change = torch._foreach_sub(self.weights, self.mean)
            torch._foreach_mul_(change, self.pull)
            torch._foreach_add_(self.mean, change)
            self.last.copy_(value.detach())

    def _graph(self) -> Callable[[], None]:
        """Return a step that replays a CUDA graph."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph.replay

    def set_progress(self, step: int, progress: float) -> None:
        """Set the learning rate and how fast the average follows, which is faster while it is young."""
        rate, group = self.stage.lr_at(progress), self.optimiser.param_groups[0]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
        self.pull.fill_(1.0 - min(self.stage.average, (1.0 + step) / (10.0 + step)))

    def averaged(self) -> dict[str, Tensor]:
        """Return the module's state with its averaged weights."""
        return {**self.module.state_dict(), **dict(zip(self.names, self.mean, strict=True))}


def store(state: dict[str, Tensor], path: Path) -> None:
    """Write weights in float16, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    halves = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in state.items()}
    save_file(halves, partial)
    partial.replace(path)


def restore(module: nn.Module, path: Path) -> None:
    """Fill a module with what :func:`store` wrote."""
    module.load_state_dict({name: value.float() for name, value in load_file(path).items()})


def fit(
    module: nn.Module,
    loss: Callable[[], Tensor],
    stage: Stage,
    device: torch.device,
    weights: Path,
    save_every: float = 30.0,
    set_progress: Callable[[float], None] | None = None,
) -> dict[str, float]:
    """Train ``module``, which is on ``device``, and leave its averaged weights in it and in the file ``weights``.

    ``set_progress`` is called before every step with the share of the training that is done, from 0 to 1.
    Every ``save_every`` seconds the file is written, and on a CPU the whole state beside it, from which the same call
    resumes. Returns the steps, seconds and loss, which are also in a ``.json`` file beside the weights.
    """
    trainer, begun, state = Trainer(module, loss, stage, device), time.monotonic(), weights.with_suffix(".state")
    step = 0
    if state.is_file():
        kept = torch.load(state, weights_only=True, map_location=device)
        step, begun = int(kept["step"]), begun - float(kept["seconds"])
        with torch.no_grad():
            torch._foreach_copy_(trainer.weights + trainer.mean, kept["weights"] + kept["mean"])
        trainer.optimiser.load_state_dict(kept["optimiser"])
        torch.manual_seed(torch.initial_seed() + step)
    said = saved = time.monotonic()
    report: dict[str, float] = {}
    done = stage.progress(step, time.monotonic() - begun)
    while done < 1.0:
        trainer.set_progress(step, done)
        if set_progress is not None:
            set_progress(done)
        trainer.step()
        step += 1
        if device.type == "cuda" and step % 16 == 0:
            torch.cuda.synchronize()  # the clock must not run ahead of the GPU
        now = time.monotonic()
        done = stage.progress(step, now - begun)
        if now - said > 5.0 or done >= 1.0:
            said = now
            report = {"steps": step, "batch": stage.batch, "lr": stage.lr, "loss": round(trainer.last.item(), 5)}
            report["seconds"] = round(time.monotonic() - begun, 1)
            print(f"{weights.stem}: {100 * done:5.1f} %  {json.dumps(report)}", flush=True)
        if now - saved > save_every or done >= 1.0:
            saved = now
            store(trainer.averaged(), weights)
            weights.with_suffix(".json").write_text(json.dumps(report) + "\n", encoding="utf-8")
            if device.type == "cpu":
                _keep(trainer, step, now - begun, state)
    module.load_state_dict(trainer.averaged())
    state.unlink(missing_ok=True)
    return report


def _keep(trainer: Trainer, step: int, seconds: float, path: Path) -> None:
    """Write everything that resuming needs."""
    kept = {"step": step, "seconds": seconds, "weights": trainer.weights, "mean": trainer.mean}
    partial = path.with_suffix(".unfinished")
    torch.save({**kept, "optimiser": trainer.optimiser.state_dict()}, partial)
    partial.replace(path)
