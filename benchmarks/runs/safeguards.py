"""A run's safeguards against overoptimisation: when it stops early, and which checkpoint it keeps as its best."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from algorithms.config.base import EvaluationConfig, check_kl_limit, check_patience
from benchmarks.runs.metrics import OF_PAIRS, check_metric, is_distance
from diffusion_gym.prompts import evaluation_prompts, resolve_prompts

#: Before a metric's name: measured on the held-out prompts.
HELD_OUT = "held_out/"
_NO_METRIC = tyro.conf.arg(metavar="METRIC", help_behavior_hint="(default: none)")


@dataclass(frozen=True)
class Safeguards:
    """When a run stops early, and which checkpoint it keeps as its best."""

    details: ClassVar[tuple[str, ...]] = ("stop_at_kl", "stop_when_metric_falls", "patience", "stop_when_hacked")

    stop_at_kl: Annotated[float | None, tyro.conf.arg(metavar="NATS", help_behavior_hint="(default: never)")] = None
    """Stop when eval/kl_to_start exceeds this many nats per image; needs --kl-to-start or a KL penalty."""
    stop_when_metric_falls: Annotated[str | None, _NO_METRIC] = None
    """Stop when this metric (named as for --keep-best) has not improved for --patience evaluations."""
    patience: int = 3
    """Evaluations in a row without an improvement after which --stop-when-metric-falls stops."""
    stop_when_hacked: bool = False
    """Stop when the run's log shows that its reward is being hacked (train says so in any case), and export the best
    weights before it."""
    keep_best: Annotated[str | None, _NO_METRIC] = None
    """Also keep the best checkpoint, as best.zip, by reward, one of --metrics, or either on held-out prompts, as in
    held_out/reward."""

    def __post_init__(self) -> None:
        """Refuse impossible numbers and unknown metrics."""
        if self.stop_at_kl is not None:
            check_kl_limit(self.stop_at_kl)
        check_patience(self.patience)
        for name in self.measured:
            check_metric(name)
            if is_distance(name):
                raise ValueError(f"expected a metric of which more is better, got the distance {name!r}.")

    @property
    def kept_by(self) -> str | None:
        """What the best checkpoint is kept by; None if none is kept."""
        return "reward" if self.keep_best is None and self.stop_when_hacked else self.keep_best

    @property
    def watched(self) -> tuple[str, ...]:
        """The metrics that decide, as they are named."""
        return tuple(name for name in (self.stop_when_metric_falls, self.keep_best) if name is not None)

    @property
    def measured(self) -> tuple[str, ...]:
        """The metrics to measure beside the reward."""
        bare = (name.removeprefix(HELD_OUT) for name in self.watched)
        return tuple(dict.fromkeys(name for name in bare if name != "reward"))

    def check(self, evaluations: int, held_out: bool, measures_kl: bool) -> None:
        """Raise ValueError for safeguards for which the run measures nothing; ``evaluations``: images of each."""
        if evaluations == 0 and (self.watched or self.stop_at_kl is not None or self.stop_when_hacked):
            raise ValueError(
                "stop_at_kl, stop_when_metric_falls, stop_when_hacked and keep_best decide at evaluations, of which "
                "there are none; set --evaluation.images, for example to 64."
            )
        if self.stop_at_kl is not None and not measures_kl:
            raise ValueError("stop_at_kl needs the KL to the starting model, which is not measured; set --kl-to-start.")
        if not held_out and any(name.startswith(HELD_OUT) for name in self.watched):
            raise ValueError(
                f"a metric with {HELD_OUT} before it needs held-out prompts; set --evaluation.held-out-prompts, for "
                "example to animals@held-out, or leave the prefix out."
            )

    def check_prompts(self, trained: Sequence[str], evaluation: EvaluationConfig) -> None:
        """Raise ValueError if a safeguard compares images of one prompt, and no evaluation has two of one."""
        comparing = [name for name in self.watched if name.removeprefix(HELD_OUT) in OF_PAIRS]
        comparing += ["stop_when_hacked"] if self.stop_when_hacked else []
        for name in comparing:
            held_out = evaluation.held_out_prompts if name.startswith(HELD_OUT) else None
            texts = trained if held_out is None else resolve_prompts(held_out)
            shown = evaluation_prompts(texts, evaluation.images, evaluation.images_per_prompt)
            if len(set(shown)) == len(shown):
                raise ValueError(
                    f"{name} compares images of one prompt, but {evaluation.images} evaluation images of {len(texts)} "
                    f"prompts are of as many prompts; set --evaluation.images-per-prompt to 2 or more."
                )
