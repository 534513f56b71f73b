"""The hacking suite: rewards that can be hacked where gold is measured, and what is said to keep a model whole.

Plain DDPO-IS, RWR and AWM on emoji-animals are runs of ``paper`` and ``modern``: the page reads their first 1,024
queries beside these. So are those on geneval, of ``composition`` and ``modern``. On emoji-animals branched groups have
half of the learning rate that they have in ``modern``, and so plain runs of their own.
"""

from collections.abc import Mapping
from dataclasses import replace

from benchmarks.runs.safeguards import Safeguards
from benchmarks.suite.claims import Variant
from benchmarks.suite.ladder import EXACT_LADDER, RUNGS
from benchmarks.suite.recipes import EXACT, MODERN, PAPER, Recipe
from benchmarks.suite.tasks import EXACT_TASKS, PAPER_TASKS, Task

_EVERY = 128  # reward queries
_AVERAGE = {"ema_decay": 0.95}
_MEASURED = ("recognised", "clip_score", "sharpness", "colourfulness", "flat_area")
_HACKED = ("compressibility", "incompressibility", "aesthetic")
#: The same rewards with ``clip_score``, which gold has no part in: 62.6 at the start with a standard deviation of 4.4,
#: so that one picture in ten is below the floor there.
_FLOOR = "{}:normalise,clip_score:floor=58:normalise:2"
_SUM = "{}:normalise,clip_score:normalise"


def _task(reward: str, text: str = "{}") -> Task:
    config = replace(PAPER_TASKS[reward].config, reward=text.format(reward), metrics=_MEASURED)
    return Task(config, reward_queries=1024)


HACKING_TASKS = {reward: _task(reward) for reward in _HACKED}
FLOOR_TASKS = {f"{reward}-floor": _task(reward, _FLOOR) for reward in _HACKED}
SUM_TASKS = {f"{reward}-sum": _task(reward, _SUM) for reward in _HACKED}
#: Trained until the mean has left the target's.
HACKING_EXACT_TASKS = {"mixture-linear": replace(EXACT_TASKS["mixture-linear"], reward_queries=3072)}

#: The settings of ``paper`` and ``modern``.
HACKING = Recipe(PAPER.policy, PAPER.settings, evaluation_images=32, queries_per_evaluation=_EVERY)
HACKING_EXACT = Recipe(
    EXACT.policy, {**EXACT_LADDER.settings, "rwr": EXACT.settings["rwr"]}, queries_per_evaluation=2 * _EVERY
)


#: Gentler than in ``modern``.
BRANCHED = replace(MODERN, settings={"branched": {**MODERN.settings["branched"], "learning_rate": 2e-3}})

#: The number is the cost of a nat in stds of the reward. At 0.03 DDPO-IS loses half of the animals in ``leash``.
HACKING_VARIANTS: Mapping[str, Variant] = {
    "ddpo-is-kl-0.1": Variant("ddpo-is", {"kl_penalty": 0.1}),
    "ddpo-is-ema": Variant("ddpo-is", _AVERAGE),
    "branched": Variant("branched", recipe=BRANCHED),
    "branched-kl-0.03": Variant("branched", {"kl_penalty": 0.03}, recipe=BRANCHED),
    "branched-kl-0.1": Variant("branched", {"kl_penalty": 0.1}, recipe=BRANCHED),
}
FLOOR_VARIANTS = {"ddpo-is-floor": Variant("ddpo-is")}
#: The sum, and each of its two rewards normalised by itself in a group.
SUM_VARIANTS = {
    "branched-sum": Variant("branched", recipe=BRANCHED),
    "branched-gdpo": Variant("branched", {"advantages": "gdpo"}, recipe=BRANCHED),
}

_MIXTURE_BRANCHED = RUNGS["branched"].changes
#: The truth's own price of a nat is 1, which is 0.9 standard deviations of the reward at the start.
HACKING_EXACT_VARIANTS: Mapping[str, Variant] = {
    "ddpo-is": Variant("ddpo-is"),
    "ddpo-is-kl-0.3": Variant("ddpo-is", {"kl_penalty": 0.3}),
    "ddpo-is-kl-0.9": Variant("ddpo-is", {"kl_penalty": 0.9}),
    "ddpo-is-ema": Variant("ddpo-is", _AVERAGE),
    "branched": Variant("grpo", _MIXTURE_BRANCHED),
    "branched-kl-0.3": Variant("grpo", {**_MIXTURE_BRANCHED, "kl_penalty": 0.3}),
    "awm": RUNGS["re-noised-quiet"],
    "rwr": Variant("rwr"),
}

#: ``--suite stopped``: plain runs, and the same with ``--stop-when-hacked``, on seeds that no detector was tuned on.
_PLAIN = {"ddpo-is": Variant("ddpo-is"), "branched": Variant("branched", recipe=BRANCHED)}
STOPPED = "-stopped"
STOPPED_VARIANTS: Mapping[str, Variant] = {
    **_PLAIN,
    **{f"{name}{STOPPED}": replace(one, safeguards=Safeguards(stop_when_hacked=True)) for name, one in _PLAIN.items()},
}
