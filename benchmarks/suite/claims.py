"""The paper's claims (Black et al. 2023), each as an ablation that can be run."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.runs.safeguards import Safeguards
from benchmarks.suite.recipes import Recipe
from benchmarks.suite.tasks import PAPER_TASKS, Task


@dataclass(frozen=True)
class Variant:
    """An algorithm with some settings of its own."""

    algorithm: str
    changes: Mapping[str, object] = field(default_factory=dict)
    recipe: Recipe | None = None
    """How it is trained; None is the comparison's."""
    safeguards: Safeguards = field(default_factory=Safeguards)
    """When its runs stop early, and which checkpoint they keep as their best."""


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, and the runs that show whether it holds here."""

    statement: str
    """The claim."""
    where: str
    """Its place in the paper."""
    task: Task
    """What is tuned."""
    variants: Mapping[str, Variant]
    """What is compared."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Variants of which the first should end higher, if the claim holds."""
    peaks: tuple[str, ...] = ()
    """Metrics for which the number of runs that end below their start is shown."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run per seed and variant; five if all runs are those of ``paper``."""


def _rwr_every(images: int) -> Variant:
    """Return RWR with ten trained rows per image: 64 images per iteration get five updates of 128 rows."""
    return Variant("rwr", {"images_per_iteration": images, "updates_per_iteration": images * 5 // 64})


def _sampled_with_guidance(**changes: object) -> Variant:
    """Return sparse RWR whose images are sampled with guidance, in training and evaluation."""
    return Variant("sparse-rwr", {"guidance_scale": 3.0, **changes})


_FIVE = (0, 1, 2, 3, 4)

CLAIMS: dict[str, Claim] = {
    "ddpo-above-rwr": Claim(
        statement="At equal reward queries DDPO ends above RWR.",
        where="section 6.1, figure 4",
        task=PAPER_TASKS["incompressibility"],
        variants={name: Variant(name) for name in ("ddpo-is", "ddpo-sf", "rwr", "sparse-rwr")},
        pairs=(("ddpo-is", "rwr"), ("ddpo-is", "sparse-rwr"), ("ddpo-sf", "rwr"), ("ddpo-sf", "sparse-rwr")),
        seeds=_FIVE,
    ),
    "is-against-sf": Claim(
        statement="Several clipped updates a rollout (DDPO-IS) end slightly above one update a rollout (DDPO-SF).",
        where="section 6.1, figure 4",
        task=PAPER_TASKS["compressibility"],
        variants={name: Variant(name) for name in ("ddpo-is", "ddpo-sf")},
        pairs=(("ddpo-is", "ddpo-sf"),),
        seeds=_FIVE,
    ),
    "rwr-interleaving": Claim(
        statement="RWR gains from sampling anew more often up to a point, and loses from there; it never reaches DDPO.",
        where="appendix E.2, figure 11",
        task=PAPER_TASKS["incompressibility"],  # toward the other, a model that is fitted to its own samples drifts
        variants={
            **{f"rwr-{images}": _rwr_every(images) for images in (64, 128, 256, 512)},
            "ddpo-is": Variant("ddpo-is"),
        },
        pairs=(
            *((f"rwr-{images}", f"rwr-{2 * images}") for images in (256, 128, 64)),
            *(("ddpo-is", f"rwr-{images}") for images in (512, 256, 128, 64)),
        ),
    ),
    "cfg-training": Claim(
        statement="RWR that samples with guidance breaks down unless it also fits the guided prediction.",
        where="appendix E.1, figure 10",
        task=PAPER_TASKS["incompressibility"],
        variants={
            "guided": _sampled_with_guidance(),
            "conditional": _sampled_with_guidance(cfg_training=False),
        },
        pairs=(("guided", "conditional"),),
        peaks=("recognised", "clip_score"),
    ),
    "unseen-prompts": Claim(
        statement="What is learned on some prompts carries over to prompts that were never trained on.",
        where="section 6.3, appendix F, figure 12",
        task=PAPER_TASKS["aesthetic"],
        variants={name: Variant(name) for name in ("ddpo-is", "rwr")},
        seeds=_FIVE,
    ),
    "overoptimisation": Claim(
        statement="Trained for long, the reward is exploited and the pictures lose their content.",
        where="appendix A, figure 7",
        task=PAPER_TASKS["incompressibility"],
        variants={name: Variant(name) for name in ("ddpo-is", "rwr")},
        peaks=("recognised", "clip_score", "diversity"),
        seeds=_FIVE,
    ),
}
