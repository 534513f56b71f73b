"""The model card beside exported weights, in the hub's form: what was tuned, how, what came of it, how to load it."""

import inspect
import json
import math
import re
from pathlib import Path
from typing import Any

from algorithms import DiffusionAlgorithm
from benchmarks.charts import Chart, figure, styles, write_figure
from benchmarks.runs.loading_code import base_name, is_folder, loading_code, used_sampler
from benchmarks.runs.pictures import dispensable
from benchmarks.runs.spec import RunSpec
from diffusion_gym.naming import escaped, one_line

CARD, CURVE = "README.md", "curve.png"
#: An absolute path belongs to one machine and means nothing to a reader; its last name stays.
_ABSOLUTE = re.compile(r"(?<![\w./])/(?:[^/\s:,]+/)*([^/\s:,]+)")

TEMPLATE = """\
---
base_model: {quoted}
library_name: diffusers
pipeline_tag: {pipeline_tag}
tags:
{tags}
---

# {base}, tuned toward {reward}

{what} for {link}, tuned with reinforcement learning ({algorithm}) toward the reward {reward}.
It was made by Diffusion Gym. The base model's licence holds for it.

| | |
|---|---|
{rows}

{curve}{evaluation}

A higher reward is not a better picture: a reward can be had in ways that nobody wanted. Look at the pictures before you
use the model.

## How to load

In this folder:

```python
{code}
```
"""


def write_model_card(
    folder: Path,
    spec: RunSpec,
    algorithm: DiffusionAlgorithm[Any],
    log: list[dict[str, Any]],
    evaluations: list[dict[str, Any]],
    packages: dict[str, str | None],
) -> None:
    """Write README.md and its curve into the folder of exported weights.

    Args:
        folder: what ``algorithm.export`` filled with a LoRA file or a pipeline.
        spec: of the run.
        algorithm: as it ended.
        log: the run's lines.
        evaluations: the run's, with ``iteration``, ``costs`` and ``rewards``.
        packages: name -> version that trained it.
    """
    with dispensable(folder / CURVE):
        draw_curve(folder / CURVE, _public(spec.task.reward), log, evaluations)
    model: Any = algorithm.policy.model
    base, prompted = base_name(model.name), "prompt" in inspect.signature(type(model.pipe).__call__).parameters
    kind = "lora" if model.exports_lora_file(algorithm.policy.lora) else "full-weights"
    task = "text-to-image" if prompted else "unconditional-image-generation"
    tags = ["diffusion-gym", "reinforcement-learning", spec.algorithm, kind, task]
    text = TEMPLATE.format(
        base=escaped(base),
        link=f"[{base}](https://huggingface.co/{base})" if "/" in base and not is_folder(model.name) else escaped(base),
        pipeline_tag=task,
        tags="\n".join(f"- {tag}" for tag in tags),
        quoted=base if re.fullmatch(r"[\w./-]+", base) else json.dumps(base),  # JSON is YAML
        reward=escaped(_public(spec.task.reward)),
        what="A LoRA" if kind == "lora" else "A pipeline with tuned weights",
        algorithm=spec.algorithm,
        rows="\n".join(f"| {name} | {escaped(value)} |" for name, value in _rows(spec, algorithm, packages).items()),
        curve=f"![reward over reward queries]({CURVE})\n\n" if (folder / CURVE).is_file() else "",
        evaluation=_evaluation(evaluations),
        code=loading_code(algorithm),
    )
    (folder / CARD).write_text(text, encoding="utf-8")


def _rows(spec: RunSpec, algorithm: DiffusionAlgorithm[Any], packages: dict[str, str | None]) -> dict[str, str]:
    """What the table says, by name."""
    policy, config, costs = spec.config.policy, spec.config, algorithm.costs
    trained = {"denoiser": "the denoiser", "text_encoder": "the text encoder", "both": "denoiser and text encoder"}
    adapters = f"LoRA of rank {policy.lora.rank}, alpha {policy.lora.alpha:g}, on {', '.join(policy.lora.targets)}"
    prompts = _public(spec.task.prompts or "the model's own")
    return {
        "base model": base_name(spec.task.model),
        "trained": f"{trained[policy.train]}, {adapters if policy.trainable == 'lora' else 'all weights'}",
        "reward": _public(spec.task.reward),
        "prompts": f"{prompts}, {len(algorithm.mdp.prompts)} in all",
        "algorithm": f"{spec.algorithm}, learning rate {config.learning_rate:g}, {config.images_per_iteration} images "
        "an iteration",
        "budget": f"{costs['reward_queries']:,} reward queries, {algorithm.iteration} iterations, "
        f"{costs['forward_equivalents']:,} denoiser forwards",
        "sampler": f"{used_sampler(algorithm)}, {spec.task.num_inference_steps} steps, eta {policy.eta:g}, guidance "
        f"scale {policy.guidance_scale:g}",
        "precision": f"{spec.task.dtype}, autocast {policy.autocast}",
        "seed": str(config.seed),
        "made with": ", ".join(f"{name} {version}" for name, version in packages.items() if version),
    }


def _evaluation(evaluations: list[dict[str, Any]]) -> str:
    """Say what the fixed evaluation images scored before and after."""
    if not evaluations:
        return "The run made no evaluations; the curve shows the rewards of the images it was trained on."
    first, last = evaluations[0], evaluations[-1]
    n = len(last["rewards"])
    return (
        f"Evaluated on {n} images of fixed noise, none of them trained on: reward {_mean(first['rewards'])} before and "
        f"{_mean(last['rewards'])} after {last['iteration']} iterations (mean ± its standard error over images)."
    )


def _mean(rewards: list[float]) -> str:
    n = len(rewards)
    mean = sum(rewards) / n
    error = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / max(n - 1, 1) / n)
    return f"{mean:.3f} ± {error:.3f}"


def _public(text: str) -> str:
    """Return the text with absolute paths cut to their last name."""
    return _ABSOLUTE.sub(r"\1", text)


def draw_curve(path: Path, reward: str, log: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> None:
    """Draw the rewards of training and evaluation images over reward queries."""
    rewards = {
        "training images": [
            (line["cost/reward_queries"], line["rollout/ep_rew_mean"])
            for line in log
            if line.get("rollout/ep_rew_mean") is not None
        ],
        "fixed evaluation images": [
            (line["costs"]["reward_queries"], sum(line["rewards"]) / len(line["rewards"])) for line in evaluations
        ],
    }
    rows = [{"name": name, "queries": at, "y": mean} for name, points in rewards.items() for at, mean in points]
    label = f"{one_line(reward, 40)}, mean of images"
    chart = Chart(path.stem, "", label, {"queries": "reward queries"}, rows)
    write_figure(figure([chart.specification(styles(list(rewards)))]), path)
