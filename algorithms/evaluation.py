"""Evaluation on fixed prompts and fixed noise: the same latents and step noise for every run and algorithm."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from algorithms.config.base import AlgorithmConfig, DeployedConfig
from algorithms.diversity import diversity
from algorithms.metrics import part_name
from algorithms.parallel.ranks import ALONE, Ranks
from algorithms.parallel.split import Split
from algorithms.policy import DenoisingPolicy
from algorithms.reference import Reference
from algorithms.rollouts import Rollout
from algorithms.sampling import OnStep, collect
from algorithms.seeding import EVALUATION_STREAMS, Noise
from algorithms.solving import new_solver, solve
from diffusion_gym.choices import PIPELINE
from diffusion_gym.envs.mdp import DenoisingMDP
from diffusion_gym.envs.vector import DenoiseVectorEnv
from diffusion_gym.prompts import Prompt, evaluation_prompts, load_prompts
from diffusion_gym.rewards import RewardSpec, WeightedSum
from diffusion_gym.rewards.attended import evaluating
from diffusion_gym.transitions import FlowSchedule

_CALIBRATION_IMAGES = 64


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        iteration: how many iterations had been trained.
        prompts: n texts, going through the environment's prompts in turn; of more prompts than images, evenly spaced.
        rewards: (n,), float32, on the CPU.
        images: (n, 3, H, W), uint8, on the CPU.
        parts: of a combined reward, name -> (n,), float32, on the CPU: each reward's own scores.
        kl_to_start: (n,), float32, on the CPU, where it was measured: the sum over the steps of the exact KL to the
            starting model, nats.
        held_out: the same on held-out prompts, if there are any.
        deployed: the same images under the sampler that the tuned model is used with, where it was measured.
        metadata: the n prompts' metadata.
    """

    iteration: int
    prompts: list[str]
    rewards: Tensor
    images: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    kl_to_start: Tensor | None = None
    held_out: "Evaluation | None" = None
    deployed: "Evaluation | None" = None
    metadata: list[Mapping[str, Any]] = field(default_factory=list)

    def metrics(self, prefix: str = "eval") -> dict[str, float]:
        """Return mean, std and standard error over the images, mean and std of each part, and :meth:`distances`.

        Those of the evaluations beside this one begin with "held_out", "deployed" and "deployed_held_out" instead of
        ``prefix``.
        """
        std = _sample_std(self.rewards)
        metrics = {
            f"{prefix}/reward_mean": float(self.rewards.double().mean()),
            f"{prefix}/reward_std": std,
            f"{prefix}/reward_stderr": std / math.sqrt(len(self.rewards)),
        }
        for name, scores in self.parts.items():
            mean = float(scores.double().mean())
            key = f"{prefix}/{part_name(name)}"
            metrics |= {f"{key}_mean": mean, f"{key}_std": _sample_std(scores)}
        metrics |= {f"{prefix}/{name}": value for name, value in self.distances().items()}
        if self.held_out is not None:
            metrics |= self.held_out.metrics("held_out" if prefix == "eval" else f"{prefix}_held_out")
        return metrics | ({} if self.deployed is None else self.deployed.metrics("deployed"))

    def distances(self) -> dict[str, float]:
        """How far the policy has gone: ``kl_to_start``, the mean over images in nats, and ``diversity``, levels of 255.

        What was not measured, or cannot be (diversity without two images of one prompt), is left out.
        """
        found = {} if self.kl_to_start is None else {"kl_to_start": float(self.kl_to_start.double().mean())}
        spread = diversity(self.images, self.prompts)
        return found if math.isnan(spread) else found | {"diversity": spread}


@torch.no_grad()
def evaluate(
    mdp: DenoisingMDP,
    policy: DenoisingPolicy,
    config: AlgorithmConfig,
    iteration: int,
    reference: Reference | None = None,
    ranks: Ranks = ALONE,
    on_step: OnStep | None = None,
    scheduler: str | None = None,
) -> Evaluation:
    """Denoise ``config.evaluation.images`` images with the policy's sampler and score them.

    With ``scheduler`` they are drawn by that solver of diffusers instead, from the same initial latents.

    Held-out prompts are evaluated in the same way, on the same noise. With a reference the KL to it is measured on the
    trajectories of the prompts that are trained on. Ranks share the images, and all return the whole.

    Raises:
        Interrupted: ``on_step`` returned False; see :func:`algorithms.sampling.collect`.
    """
    drawing = _Drawing(mdp, policy, config, ranks, on_step, scheduler)
    evaluation = drawing.evaluated(mdp.records, iteration, reference)
    if config.evaluation.held_out_prompts is None:
        return evaluation
    held_out = drawing.evaluated(load_prompts(config.evaluation.held_out_prompts).records, iteration)
    return dataclasses.replace(evaluation, held_out=held_out)


def evaluate_deployed(
    mdp: DenoisingMDP,
    policy: DenoisingPolicy,
    config: AlgorithmConfig,
    iteration: int,
    ranks: Ranks = ALONE,
    on_step: OnStep | None = None,
) -> Evaluation:
    """Return :func:`evaluate` under ``config.evaluation.deployed``: the same prompts, initial latents and weights."""
    used, scheduler = deployed_policy(policy, config.evaluation.deployed)
    return evaluate(mdp.with_steps(used.num_inference_steps), used, config, iteration, None, ranks, on_step, scheduler)


def deployed_policy(policy: DenoisingPolicy, deployed: DeployedConfig) -> tuple[DenoisingPolicy, str | None]:
    """Return a policy's weights with the deployed sampler, and the solver of diffusers that draws instead, if any.

    Raises:
        ValueError: a sampler or a number of steps that does not fit the model.
    """
    steps = deployed.num_inference_steps or policy.num_inference_steps
    scale = policy.config.guidance_scale if deployed.guidance_scale is None else deployed.guidance_scale
    eta = (deployed.eta or 0.0,) * steps  # one number would leave DDPM's own noise
    without: dict[str, Any] = {"negative_prompt": None, "guidance_rescale": 0.0}  # what does nothing unguided
    given, scheduler = without if scale <= 1 else {}, deployed.scheduler
    try:
        config = dataclasses.replace(policy.config, guidance_scale=scale, eta=eta, **given)
        used = policy.sampling_as(config, steps)
        if scheduler is None:
            return used, None
        if used.transition.schedule.kind != FlowSchedule.kind:
            new_solver(policy.model, scheduler, steps)
            return used, scheduler
    except ValueError as error:
        raise ValueError(_of_deployed(str(error).replace(str(eta), str(deployed.eta)), deployed)) from error
    if scheduler != PIPELINE:
        raise ValueError(
            f"deployed.scheduler {scheduler} cannot draw with {policy.model.name!r}, a flow-matching model; expected "
            "deployed.eta 0 in its place, with which the training sampler takes the Euler steps of the flow's own "
            "pipeline."
        )
    return used, None  # those Euler steps


def _of_deployed(message: str, deployed: DeployedConfig) -> str:
    """Return an error's text with the deployed sampler's settings named as such: training has some of the same name."""
    given = [name for name in ("num_inference_steps", "guidance_scale", "eta") if getattr(deployed, name) is not None]
    named = re.sub(rf"(?<![\w.])({'|'.join(given)})\b", r"deployed.\1", message) if given else message
    return named if named != message else f"deployed.scheduler {deployed.scheduler}: {message}"


@dataclass(frozen=True)
class _Drawing:
    """Pictures on the evaluation's noise: who draws them, and with what."""

    mdp: DenoisingMDP
    policy: DenoisingPolicy
    config: AlgorithmConfig
    ranks: Ranks
    on_step: OnStep | None = None
    scheduler: str | None = None

    def evaluated(self, records: Sequence[Prompt], iteration: int, reference: Reference | None = None) -> Evaluation:
        n = self.config.evaluation.images
        prompts = evaluation_prompts(records, n, self.config.evaluation.images_per_prompt)
        with evaluating(self.mdp.reward):
            rollout = self.denoise(prompts, reference=reference)
        images = rollout.split.gather(rollout.images)[:n]
        parts = {name: scores[:n].cpu() for name, scores in rollout.parts.items()}
        kl = None if rollout.kl_to_start is None else rollout.kl_to_start[:n].cpu()
        metadata = [record.reward_metadata for record in prompts]
        texts = [record.text for record in prompts]
        return Evaluation(iteration, texts, rollout.rewards[:n].cpu(), images.cpu(), parts, kl, metadata=metadata)

    def denoise(
        self, prompts: Sequence[Prompt], reward: RewardSpec | None = None, reference: Reference | None = None
    ) -> Rollout:
        """Denoise one image per prompt, as many side by side as in training.

        Where ranks cannot share the images equally, a few more follow, which the caller cuts off.
        """
        shared = [*prompts, *list(prompts[:1]) * (-len(prompts) % self.ranks.size)]
        seed, split = self.config.evaluation.seed, Split(self.ranks, len(shared))
        num_envs = min(len(shared), self.config.num_envs) // self.ranks.size
        env = DenoiseVectorEnv.sharing(self.mdp, num_envs, reward=reward, trusted=True)
        if self.scheduler is not None:
            noise = Noise(seed, EVALUATION_STREAMS, range(len(shared)))
            return solve(env, self.policy, self.scheduler, shared, noise, split, self.on_step)
        return collect(
            env,
            self.policy,
            shared,
            seed,
            whole_trajectory=False,
            streams=EVALUATION_STREAMS,
            on_step=self.on_step,
            score_beside=self.config.rewards_beside_sampling,
            reference=reference,
            split=split,
        )


@torch.no_grad()
def calibrate_reward(mdp: DenoisingMDP, policy: DenoisingPolicy, config: AlgorithmConfig, ranks: Ranks = ALONE) -> None:
    """Measure mean and std of the parts of a combined reward that are to be normalised, if they are still unknown.

    They come from 64 images of the policy as it is (the base model's, where training begins) on the evaluation's
    noise, so that runs and algorithms on one task, whatever their seed, are given the same reward. Like an
    evaluation, it costs no training queries.
    """
    reward = mdp.reward
    if not isinstance(reward, WeightedSum) or not reward.needs_calibration:
        return
    prompts = evaluation_prompts(mdp.records, _CALIBRATION_IMAGES)
    rollout = _Drawing(mdp, policy, config, ranks).denoise(prompts, reward=_nothing)
    images = rollout.split.gather(rollout.images)[:_CALIBRATION_IMAGES]
    texts, metadata = [record.text for record in prompts], [record.reward_metadata for record in prompts]
    ranks.call(lambda: reward.calibrate(images, texts, metadata))
    if ranks.size > 1:  # a reward that never says the same twice must still mean the same to all ranks
        reward.load_state_dict(ranks.gather_objects(reward.state_dict())[0])


def _nothing(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.zeros(len(prompts), device=images.device)


def _sample_std(values: Tensor) -> float:
    return float(values.double().std(correction=1)) if len(values) > 1 else 0.0
