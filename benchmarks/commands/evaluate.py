"""``evaluate``: runs that are finished, evaluated with another sampler on their own prompts and initial latents."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from algorithms.config.deployed import DeployedConfig, option

if TYPE_CHECKING:
    from benchmarks.runs.record import Run


@dataclass(frozen=True)
class Evaluate:
    """Evaluate trained runs, before and after training, with the sampler that their models are used with.

    Prompts, initial latents, reward and metrics are those of the runs' own evaluations.
    """

    run: tuple[Path, ...]
    """Folders written by train or compare, for example runs/*."""
    scheduler: Annotated[str | None, option("STR", "the training sampler")] = None
    """A diffusers scheduler, such as DPMSolverMultistepScheduler; pipeline is the one that the model comes with."""
    num_inference_steps: Annotated[int | None, option("INT", "as in training")] = None
    """Denoising steps per image."""
    guidance_scale: Annotated[float | None, option("FLOAT", "as in training")] = None
    """Classifier-free guidance; 1 or less is none."""
    eta: Annotated[float | None, option("FLOAT", "0")] = None
    """Noise of the training sampler; a scheduler of diffusers has its own."""
    checkpoint: Literal["last", "best"] = "last"
    """Which weights of the runs: the last ones, or those that --keep-best kept."""
    threads: int = 0
    """Torch threads; 0 uses all cores."""
    output: Path = Path("deployed.json")
    """File of the rewards and metrics."""

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        if not self.run or self.threads < 0:
            raise ValueError(f"expected a run's folder and threads >= 0, got {len(self.run)} and {self.threads}.")
        _ = self.deployed

    @property
    def deployed(self) -> DeployedConfig:
        """The sampler; without settings the training sampler at eta 0."""
        given = {name: getattr(self, name) for name in ("scheduler", "num_inference_steps", "guidance_scale", "eta")}
        found = DeployedConfig(**given)
        return found if found.is_on else DeployedConfig(eta=0.0)


def evaluate(options: Evaluate) -> int:
    """Write the scores of all runs, and print their rewards; return the exit status."""
    from algorithms.checkpoints.published import check_output, published
    from benchmarks.provenance import provenance
    from benchmarks.runs.run import read_run
    from diffusion_gym.jsonlines import finite

    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    check_output(options.output)
    runs = [(folder, read_run(folder)) for folder in options.run]
    for folder, run in runs:
        if run.spec.config.evaluation.images == 0:
            raise ValueError(f"the run in {str(folder)!r} has no evaluation, whose prompts and noise could be used.")
    with published(options.output.parent) as fresh:  # first, so that nothing is drawn that cannot be written
        data: dict[str, Any] = {"deployed": dataclasses.asdict(options.deployed), "runs": []}
        starts: dict[str, Any] = {}
        for folder, run in runs:
            data["runs"].append(_scored(options, folder, run, starts))
            print(_line(data["runs"][-1]), flush=True)
        text = json.dumps(finite({"provenance": provenance(), **data}), indent=1)
        (fresh / options.output.name).write_text(text + "\n", encoding="utf-8")
    print(options.output)
    return 0


def _scored(options: Evaluate, folder: Path, run: Run, starts: dict[str, Any]) -> dict[str, Any]:
    """Return a run's scores; ``starts`` keeps those of untrained models, which runs of one task share."""
    from algorithms.evaluation import evaluate_deployed
    from algorithms.policy import DenoisingPolicy
    from benchmarks.runs.folder import BEST, CHECKPOINT
    from benchmarks.runs.metrics import is_distance, resolve_metric
    from benchmarks.runs.recorder import others_of, scores_of
    from benchmarks.runs.run import build

    file = folder / (BEST if options.checkpoint == "best" else CHECKPOINT)
    if not file.is_file():
        raise ValueError(f"{str(folder)!r} holds no {file.name}; expected a run that has trained and kept it.")
    spec, algorithm = run.spec, build(run.spec, folder, file.name)
    evaluation = dataclasses.replace(algorithm.config.evaluation, deployed=options.deployed)
    config = dataclasses.replace(algorithm.config, evaluation=evaluation)
    device = str(algorithm.mdp.model.device)
    metrics = {name: resolve_metric(name, device) for name in spec.metrics if not is_distance(name)}

    def scores(policy: DenoisingPolicy) -> dict[str, Any]:
        found = evaluate_deployed(algorithm.mdp, policy, config, algorithm.iteration)
        others = {name: scores_of(other, metrics) for name, other in others_of(found).items()}
        return scores_of(found, metrics) | others

    with algorithm.averaged():
        end = scores(algorithm.policy)
    shared = [dataclasses.asdict(each) for each in (spec.task, config.policy, config.evaluation)]
    key = json.dumps([*shared, spec.metrics])  # the safeguards' metrics, too
    if key not in starts:
        starts[key] = scores(DenoisingPolicy(algorithm.mdp.model, algorithm.mdp.num_inference_steps, config.policy))
    return {
        "run": folder.as_posix(),
        "task": spec.task.reward,
        "algorithm": spec.algorithm,
        "seed": run.seed,
        "iteration": algorithm.iteration,
        "training_sampler": _logged(run, algorithm.iteration),
        "deployed_sampler": {"start": starts[key], "end": end},
    }


def _logged(run: Run, iteration: int) -> dict[str, Any]:
    """Return the run's own evaluations at its start and at an iteration, as far as there are any."""
    at = {"start": 0, "end": iteration}
    lines = {name: [line for line in run.evaluations if line.iteration == when] for name, when in at.items()}
    return {name: _bare(found[-1].to_json()) for name, found in lines.items() if found}


def _bare(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name in ("rewards", "metrics", "parts", "held_out")}


def _line(scored: dict[str, Any]) -> str:
    """Return the mean rewards in one line."""

    def mean(sampler: str, moment: str) -> str:
        rewards = scored[sampler].get(moment, {}).get("rewards")
        return f"{sum(rewards) / len(rewards):.4f}" if rewards else "-"

    shown = (
        f"{name.replace('_', ' ')} {mean(name, 'start')} to {mean(name, 'end')}"
        for name in ("training_sampler", "deployed_sampler")
    )
    return f"{scored['run']}: {', '.join(shown)}"
