"""The model card beside exported weights, in the hub's form: what was tuned, how, what came of it, how to load it."""

import inspect
import math
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from algorithms import DiffusionAlgorithm
from benchmarks.charts import Chart, figure, styles, write_figure
from benchmarks.runs.loading_code import base_name, is_folder, levels_of, loading_code, used_sampler
from benchmarks.runs.pictures import dispensable
from benchmarks.runs.spec import RunSpec
from diffusion_gym.naming import escaped, one_line

CARD, CURVE = "README.md", "curve.png"
_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
#: An absolute path belongs to one machine and means nothing to a reader; its last name stays.
_ABSOLUTE = re.compile(r"(?<![\w./])/(?:[^/\s:,]+/)*([^/\s:,]+)")


def write_model_card(
    folder: Path,
    spec: RunSpec,
    algorithm: DiffusionAlgorithm[Any],
    log: list[dict[str, Any]],
    evaluations: list[dict[str, Any]],
    packages: dict[str, str | None],
) -> None:
    """Write README.md and its curve into a folder of exported weights; ``packages``: name -> version."""
    with dispensable(folder / CURVE):
        draw_curve(folder / CURVE, _public(spec.task.reward), log, evaluations)
    model: Any = algorithm.policy.model
    base, prompted = base_name(model.name), "prompt" in inspect.signature(type(model.pipe).__call__).parameters
    is_lora = model.exports_lora_file(algorithm.policy.lora)
    task = "text-to-image" if prompted else "unconditional-image-generation"
    kind = "lora" if is_lora else "full-weights"
    tags = ["diffusion-gym", "reinforcement-learning", spec.algorithm, kind, task]
    card = ModelCard.from_template(
        ModelCardData(base_model=base, library_name="diffusers", pipeline_tag=task, tags=tags),
        template_path=str(_TEMPLATE),
        base=escaped(base),
        link=f"[{base}](https://huggingface.co/{base})" if "/" in base and not is_folder(model.name) else escaped(base),
        reward=escaped(_public(spec.task.reward)),
        what="A LoRA" if is_lora else "A pipeline with tuned weights",
        algorithm=spec.algorithm,
        rows={name: escaped(value) for name, value in _rows(spec, algorithm, packages).items()},
        curve=CURVE if (folder / CURVE).is_file() else "",
        evaluation=_evaluation(evaluations),
        code=loading_code(algorithm),
    )
    (folder / CARD).write_text(f"{card}\n", encoding="utf-8")


def _rows(spec: RunSpec, algorithm: DiffusionAlgorithm[Any], packages: dict[str, str | None]) -> dict[str, str]:
    """Return the table, name -> text."""
    policy, config, costs = algorithm.policy.config, spec.config, algorithm.costs
    trained = {"denoiser": "the denoiser", "text_encoder": "the text encoder", "both": "denoiser and text encoder"}
    adapters = f"LoRA of rank {policy.lora.rank}, alpha {policy.lora.alpha:g}, on {', '.join(policy.lora.targets)}"
    prompts, start = _public(spec.task.prompts or "the model's own"), spec.task.start_from
    how = {"merge": "merged into the base model; load it first, as below", "train": "trained on, and part of this LoRA"}
    whole = "merged into the base model before, and part of these weights"
    is_lora = algorithm.policy.model.exports_lora_file(algorithm.policy.lora)
    started = "" if start is None else f"{base_name(start)}, {how[spec.task.start_from_mode] if is_lora else whole}"
    return {
        "base model": base_name(spec.task.model),
        **({"started from": started} if started else {}),
        "trained": f"{trained[policy.train]}, {adapters if policy.trainable == 'lora' else 'all weights'}",
        "reward": _public(spec.task.reward),
        "prompts": f"{prompts}, {len(algorithm.mdp.prompts)} in all",
        "algorithm": f"{spec.algorithm}, learning rate {config.learning_rate:g}, {config.images_per_iteration} images "
        "per iteration",
        "budget": f"{costs['reward_queries']:,} reward queries, {algorithm.iteration} iterations, "
        f"{costs['forward_equivalents']:,} denoiser forwards",
        "sampler": f"{used_sampler(algorithm)}, {spec.task.num_inference_steps} steps, eta {_levels(algorithm)}, "
        f"guidance scale {policy.guidance_scale:g}"
        f"{f', rescaled by {policy.guidance_rescale:g}' if policy.guidance_rescale else ''}"
        f"{_negative(spec, algorithm)}",
        "precision": f"{spec.task.dtype}, autocast {policy.autocast}",
        "seed": str(config.seed),
        "made with": ", ".join(f"{name} {version}" for name, version in packages.items() if version),
    }


def _negative(spec: RunSpec, algorithm: DiffusionAlgorithm[Any]) -> str:
    """Return what guidance led away from, where that was a negative prompt."""
    if algorithm.mdp.negative_prompts:
        return ", negative prompts of the prompts' own"
    negative = spec.config.policy.negative_prompt
    return "" if negative is None else f", negative prompt {negative!r}"


def _levels(algorithm: DiffusionAlgorithm[Any]) -> str:
    """Return the noise level of all steps, or of each."""
    levels = levels_of(algorithm)
    return " ".join(f"{level:g}" for level in levels) if isinstance(levels, tuple) else f"{levels:g}"


def _evaluation(evaluations: list[dict[str, Any]]) -> str:
    """Return a sentence with the rewards of the fixed evaluation images before and after."""
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
