"""A run's specification: task, algorithm, budget; frozen dataclasses that are also the command line's options."""

import dataclasses
import importlib.util
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import tyro

from algorithms import ALGORITHMS, AlgorithmConfig
from algorithms.config.algorithms import check_several
from algorithms.config.base import check_held_out, from_dict, to_dict
from benchmarks.runs.metrics import check_metric
from benchmarks.runs.model_options import ModelOptions, check_start
from benchmarks.runs.safeguards import Safeguards
from diffusion_gym.choices import DEFAULT_MODEL, ModelDtype
from diffusion_gym.naming import did_you_mean
from diffusion_gym.prompts import PROMPT_SETS, check_prompts, resolve_prompts
from diffusion_gym.rewards import REWARDS, check_reward, check_reward_gradient
from diffusion_gym.rewards.spec import parse_reward

#: "offline" writes files that ``wandb sync`` can send later; only "online" sends anything.
WandbMode = Literal["off", "offline", "online"]
#: The sets that help lists; an unknown name's error lists all.
_SHOWN_SETS = sorted((name for name in PROMPT_SETS if "-held-out-" not in name), key=lambda name: "held-out" in name)


def check_names(kind: str, given: Collection[str], known: Collection[str]) -> None:
    """Raise ValueError unless there are names, and all are known."""
    unknown = sorted(set(given) - set(known))
    if unknown or not given:
        word = unknown[0] if unknown else "(none)"
        raise ValueError(f"unknown {kind} {word!r}; expected some of {sorted(known)}.{did_you_mean(word, known)}")


@dataclass(frozen=True)
class TaskConfig(ModelOptions):
    """The model, and what it is tuned toward."""

    details: ClassVar[tuple[str, ...]] = ("device", "dtype", "metrics")

    model: str = DEFAULT_MODEL
    """emoji-animals or emoji-world (embedded), exact-gaussian, exact-mixture, a diffusers folder, or a hub id."""
    reward: Annotated[
        str,
        tyro.conf.arg(
            help=f"One of {', '.join(sorted(REWARDS))}; your own function as path/to/file.py:function; or a weighted "
            "sum as name:weight,name:weight. A name may be followed by ?key=value&key=value, :normalise and :floor=X "
            "(see docs/rewards.md)."
        ),
    ] = "compressibility"
    """A registered reward, a function in a file, or several of either; also with options, normalised or as a floor."""
    prompts: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="SET|FILE",
            help=f"A prompt set ({', '.join(_SHOWN_SETS)} or a part of it), or a UTF-8 file: "
            ".txt with one prompt per line, or .jsonl, .json, .csv or .tsv with weights and metadata. Append @train or "
            "@held-out for one side of its split.",
            help_behavior_hint="(default: the model's own)",
        ),
    ] = None
    """A prompt set or a file of prompts, or one side of its split; None takes the model's own."""
    num_inference_steps: int = 10
    """Denoising steps per image."""
    device: str = "auto"
    """Where the model runs: cpu, cuda, cuda:1, mps, or auto, a CUDA GPU if there is one, else the CPU."""
    dtype: ModelDtype = "float32"
    """Precision of the frozen networks."""
    metrics: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            help="Measured at evaluations, besides reward and diversity: clip_diversity, sharpness, colourfulness, "
            "flat_area, recognised (emoji-animals), judge or judge-KIND (emoji-world; for example judge-counting), or "
            "any reward.",
            help_behavior_hint="(default: none)",
        ),
    ] = ()
    """Names of metrics, or rewards, that are measured at evaluations."""

    def __post_init__(self) -> None:
        """Refuse unknown names before any weight is loaded."""
        super().__post_init__()
        check_reward(self.reward)
        if self.prompts is not None:
            check_prompts(self.prompts)
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {self.num_inference_steps}.")
        for metric in self.metrics:
            check_metric(metric)


@dataclass(frozen=True)
class Writing:
    """What a run writes besides its log, and its threads; of these only the threads change results."""

    details: ClassVar[tuple[str, ...]] = ("checkpoint_every", "keep_checkpoints", "threads", "tensorboard", "wandb")

    checkpoint_every: int = 10
    """Iterations between checkpoints."""
    keep_checkpoints: int = 1
    """Checkpoints to keep. With 2 or more, the latest are in the folder's checkpoints/, named after their iteration."""
    threads: int = 0
    """Torch threads; 0 uses all cores. On the CPU the same number gives the same results bit for bit."""
    tensorboard: bool = False
    """Also write curves and image grids for TensorBoard to the folder's tensorboard/; needs the package tensorboard."""
    wandb: WandbMode = "off"
    """Also log to Weights & Biases; needs the package wandb. offline writes files to the folder and sends nothing."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers, and packages that are not installed."""
        if self.checkpoint_every < 1 or self.keep_checkpoints < 1 or self.threads < 0:
            raise ValueError(
                "expected checkpoint_every >= 1, keep_checkpoints >= 1 and threads >= 0, got "
                f"{self.checkpoint_every}, {self.keep_checkpoints} and {self.threads}."
            )
        for option, name in ((self.tensorboard, "tensorboard"), (self.wandb != "off", "wandb")):
            if option and importlib.util.find_spec(name) is None:
                raise ValueError(f"--{name} needs the package {name}: python -m pip install {name}.")


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides a run's numbers, on one device with one number of threads."""

    algorithm: str
    """Registered name."""
    config: AlgorithmConfig
    """The algorithm's configuration."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """The task."""
    reward_queries: int = 2048
    """Reward queries to train for, rounded up to whole iterations."""
    safeguards: Safeguards = field(default_factory=Safeguards)
    """When it stops early, and which checkpoint it keeps as its best."""

    def __post_init__(self) -> None:
        """Refuse an impossible budget, an unknown algorithm, prompts on both sides of a split, or idle safeguards."""
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"unknown algorithm {self.algorithm!r}; expected one of {sorted(ALGORITHMS)}.")
        if self.reward_queries < 1:
            raise ValueError(f"reward_queries must be at least 1, got {self.reward_queries}.")
        evaluation = self.config.evaluation
        measures_kl = self.config.kl_to_start or getattr(self.config, "kl_penalty", 0) > 0
        self.safeguards.check(evaluation.images, evaluation.held_out_prompts is not None, measures_kl)
        if self.task.prompts is not None:  # the model's own are known once it is loaded
            prompts = resolve_prompts(self.task.prompts)
            check_held_out(prompts, evaluation)
            self.safeguards.check_prompts(prompts, evaluation)

    def check(self) -> None:
        """Raise ValueError for what the algorithm cannot train: settings, or a reward without what it needs.

        As far as known without the model and without running a file of rewards.
        """
        check_start(self.task.model, self.task.start_from)
        cls = ALGORITHMS[self.algorithm].cls
        cls.check_config(self.config)
        needs = cls.requires(self.config)
        if needs.reward_gradient:
            check_reward_gradient(self.task.reward)
        if needs.several_rewards:
            weights = [term.modifiers.get("weight", 1.0) for term in parse_reward(self.task.reward)]
            check_several(self.task.reward, weights)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What each evaluation measures beside the reward: the task's metrics, and those the safeguards watch."""
        return tuple(dict.fromkeys((*self.task.metrics, *self.safeguards.measured)))

    @property
    def total_queries(self) -> int:
        """Reward queries of the whole iterations that the budget is rounded up to."""
        size = self.config.images_per_iteration
        return -(-self.reward_queries // size) * size

    def to_json(self) -> dict[str, Any]:
        """Return the specification as JSON."""
        return {
            "algorithm": self.algorithm,
            "config": to_dict(self.config),
            "task": dataclasses.asdict(self.task),
            "reward_queries": self.reward_queries,
            "safeguards": dataclasses.asdict(self.safeguards),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RunSpec":
        """Return the specification that ``to_json`` wrote; raise KeyError, TypeError or ValueError if it is damaged."""
        name = data["algorithm"]
        if name not in ALGORITHMS:
            raise ValueError(
                f"unknown algorithm {name!r}; expected one of {sorted(ALGORITHMS)}. If it is in a file of yours, start "
                "that file in place of diffusion-gym: python FILE.py ... (docs/your-own-algorithm.md)."
            )
        return cls(
            name,
            from_dict(type(ALGORITHMS[name].config), data["config"]),
            from_dict(TaskConfig, data["task"]),
            data["reward_queries"],
            from_dict(Safeguards, data.get("safeguards", {})),  # committed results without any have none
        )
