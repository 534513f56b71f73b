"""What a run will take, before it begins: forward passes, reward calls, memory and, after a probe of seconds, time.

Forward passes are counted, not derived: one iteration of the same configuration runs on an exact model, whose passes
cost next to nothing; where windows lie at random, iterations differ a little. What a pass, a decoded picture and a
reward take is then measured on the model itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

import gymnasium
import torch

import diffusion_gym
from algorithms import ALGORITHMS, AlgorithmConfig, DiffusionAlgorithm, EvaluationConfig
from algorithms.base import FORWARDS_PER_TRAINED_ROW
from algorithms.config.base import field_values, override
from algorithms.parallel.ranks import current_ranks
from benchmarks.runs.clock import Seconds
from benchmarks.runs.spec import RunSpec
from benchmarks.terminal import duration
from benchmarks.throughput.iteration import Rows, iterate_counting
from diffusion_gym.rewards import REWARDS
from diffusion_gym.rewards.metadata import metadata_arguments
from diffusion_gym.rewards.spec import parse_reward

#: Rows that one iteration of the counted run may sample: seconds.
_MOST_ROWS = 50_000
#: How often a probe times each part; and the share of a run's passes, one in so many, that its own may be.
_TIMES, _SHARE = 3, 20
#: Rewards whose calls cost more than time: a person's attention, or another machine's.
_NOT_PROBED = ("votes", "unified", "vlm_alignment")
#: The counted run's policy: the exact model has no adapters, no text encoder and no guidance.
_PLAIN = {
    "train": "denoiser",
    "trainable": "full",
    "guidance_scale": 1.0,
    "guidance_rescale": 0.0,
    "image_guidance_scale": 1.0,
    "negative_prompt": None,
    "sampler": "auto",
    "chunk_size": 512,
    "autocast": "none",
    "gradient_checkpointing": False,
    "compile": False,
    "channels_last": False,
    "optimizer": "adamw",
    "reencode_images": False,
    "evaluation": EvaluationConfig(),
}


@dataclass(frozen=True)
class Workload:
    """How much a run does."""

    iterations: int
    images: int
    """Per iteration, each scored once."""
    evaluated: int
    """Images of all evaluations, held-out ones included, each scored once."""
    steps: int
    """Denoising steps per image."""
    rows: Rows | None
    """Rows through the denoiser per iteration; None where they are not counted."""
    deployed: int = 0
    """Of the evaluated images those that are drawn with the deployed sampler."""
    deployed_steps: int = 0
    """Denoising steps of each of them."""

    @property
    def evaluation_steps(self) -> int:
        """Denoising steps of all evaluations."""
        return (self.evaluated - self.deployed) * self.steps + self.deployed * self.deployed_steps

    def forwards(self, per_row: int) -> tuple[int, int] | None:
        """Return the run's forward passes in sampling and in training, where a trained row counts as three."""
        if self.rows is None:
            return None
        trained = FORWARDS_PER_TRAINED_ROW * self.rows.trained + self.rows.compared
        return per_row * self.iterations * self.rows.sampled, per_row * self.iterations * trained

    def describe(self, per_row: int) -> str:
        """Return two lines for the terminal; with guidance a row takes two forward passes."""
        first = (
            f"{self.iterations:,} iterations of {self.images:,} images: {self.iterations * self.images:,} reward calls"
            f", and {self.evaluated:,} in evaluations"
        )
        forwards = self.forwards(per_row)
        if forwards is None:
            return f"{first}\nforward passes: not counted for this configuration"
        return (
            f"{first}\nforward passes: {sum(forwards):,} (sampling {forwards[0]:,}, training {forwards[1]:,}, where a "
            f"trained row counts as three), and {per_row * self.evaluation_steps:,} in evaluations"
        )


@dataclass(frozen=True)
class Speed:
    """What a run's parts took in a probe, in seconds."""

    forward: float
    """Per row that is sampled."""
    training: float
    """Per row that is trained, forward and backward."""
    decoding: float
    """Per image."""
    reward: float | None
    """Per image; None for a reward that is not called before the run."""

    def seconds(self, work: Workload) -> dict[str, float] | None:
        """Return what each part of a run takes, in seconds; None where its rows are not counted."""
        if work.rows is None:
            return None
        rows, images = work.rows, work.iterations * work.images + work.evaluated
        return {
            "sampling": work.iterations * (rows.sampled * self.forward),
            "training": work.iterations * (rows.trained * self.training + rows.compared * self.forward),
            "decoding": images * self.decoding,
            "reward": images * (self.reward or 0),
            "evaluations": work.evaluation_steps * self.forward,
        }

    def describe(self, work: Workload) -> str:
        """Return a line for the terminal."""
        parts = self.seconds(work)
        if parts is None:
            return "time: not estimated, as the forward passes are not counted"
        shown = {name: seconds for name, seconds in parts.items() if seconds > 0}
        without = "" if self.reward is not None else "; without the reward, which is not called before the run"
        listed = ", ".join(f"{name} {duration(seconds)}" for name, seconds in shown.items())
        return f"time, from a probe: about {duration(sum(parts.values()))} ({listed}){without}"


def workload(spec: RunSpec) -> Workload:
    """Count what a run does, without its model."""
    evaluation = spec.config.evaluation
    deployed, each = evaluation.deployed, evaluation.images * (2 if evaluation.held_out_prompts else 1)
    often = (evaluations(spec) if deployed.always else 2) if deployed.is_on else 0
    images, steps = spec.config.images_per_iteration, spec.task.num_inference_steps
    return Workload(
        iterations(spec),
        images,
        (evaluations(spec) + often) * each,
        steps,
        rows_per_iteration(spec),
        often * each,
        deployed.num_inference_steps or steps,
    )


def iterations(spec: RunSpec) -> int:
    """Return how often a run samples and updates."""
    return spec.total_queries // spec.config.images_per_iteration


def evaluations(spec: RunSpec) -> int:
    """Return how often a run is evaluated, before training and at the end included."""
    every, count = spec.config.evaluation.every, iterations(spec)
    return len({*range(0, count, every), count})


def rows_per_iteration(spec: RunSpec) -> Rows | None:
    """Count the rows of one iteration on an exact model.

    None where the algorithm cannot run on it as configured, on several ranks, and for iterations so large that
    counting takes minutes. An algorithm of the user's may fail there in any way, and run on its own model all the same.
    """
    if current_ranks().size > 1 or spec.config.images_per_iteration * spec.task.num_inference_steps > _MOST_ROWS:
        return None
    cls, known = ALGORITHMS[spec.algorithm].cls, field_values(spec.config)
    flow = spec.config.policy.sampler in ("flow-sde", "cps")
    try:
        config = override(spec.config, **{name: value for name, value in _PLAIN.items() if name in known})
        env = gymnasium.make(
            diffusion_gym.ENV_ID,
            model=f"exact-{'flow-' if flow else ''}gaussian",
            reward="exact-quadratic,exact-quadratic" if cls.requires(config).several_rewards else "exact-quadratic",
            num_inference_steps=spec.task.num_inference_steps,
        )
        return iterate_counting(cls(env, config))
    except Exception:
        return None


def is_cheap(algorithm: DiffusionAlgorithm[AlgorithmConfig], work: Workload) -> bool:
    """Return whether a probe's forward passes are at most a twentieth of the run's."""
    forwards = work.forwards(1)
    size = min(algorithm.policy.chunk_size, algorithm.config.num_envs)
    passes = _TIMES * (1 + FORWARDS_PER_TRAINED_ROW) * size
    return forwards is not None and _SHARE * passes <= sum(forwards)


def probe(algorithm: DiffusionAlgorithm[AlgorithmConfig], spec: RunSpec) -> Speed:
    """Time a forward pass, a forward and backward pass, decoding and the reward, three times each; the least counts.

    No weight, gradient or random state is changed. The reward is called for two images if it is one of the
    registered ones that work on this machine.
    """
    policy, device, images = algorithm.policy, algorithm.policy.model.device, 2
    size = min(policy.chunk_size, algorithm.config.num_envs)
    rows, trained = policy.blank_rows(size), list(policy.trainable_parameters().values())
    records = [algorithm.mdp.records[i % len(algorithm.mdp.records)] for i in range(images)]
    reward = algorithm.mdp.reward
    names = [term.reward.partition("?")[0] for term in parse_reward(spec.task.reward)]
    called = all(name in REWARDS and name not in _NOT_PROBED for name in names)
    called = called and not getattr(reward, "needs_calibration", False)

    def timed(part: Callable[[], object]) -> float:
        taken = []
        for _ in range(_TIMES):
            started = Seconds.now(device)
            part()
            taken.append((Seconds.now(device) - started).wall)
        return min(taken)

    def sample() -> None:
        with torch.no_grad():
            policy.distribution(rows)

    def train() -> None:
        with torch.enable_grad():
            torch.autograd.grad(policy.distribution(rows).mean.sum(), trained, allow_unused=True)

    def decode() -> torch.Tensor:
        return policy.model.decode(rows.latents[:1].expand(images, *policy.model.latent_shape))

    def score() -> None:
        more, named = metadata_arguments(reward, images, [record.metadata for record in records])
        reward(pictures, [record.text for record in records], *more, **named)

    pictures = decode()
    return Speed(
        timed(sample) / size,
        timed(train) / size,
        timed(decode) / images,
        timed(score) / images if called else None,
    )
