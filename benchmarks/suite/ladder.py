"""The ladder of factors: from DDPO-IS to branched groups, and to re-noised pictures, one setting at a time."""

from collections.abc import Mapping

from benchmarks.suite.claims import Variant
from benchmarks.suite.recipes import EXACT, POLICY, Recipe

_GROUP = {"advantages": "group", "images_per_prompt": 8}
_TWO_STEPS = {**_GROUP, "window": 2}
_QUIET = {**_TWO_STEPS, "eta": 0.0}
_ONE_STEP = {**_QUIET, "window": 1}
_EQUAL = {**_ONE_STEP, "step_weight": "equal"}
_BRANCHED = {**_EQUAL, "branched": True}
_RENOISED = {**_GROUP, "surrogate": "regression", "anchor_old": 0.0, "anchor_start": 0.0, "old_decay": 0.0}
_RENOISED_QUIET = {**_RENOISED, "eta": 0.0}
#: Each rung to "branched" adds one factor to the rung before it, and each of the next two adds one to "branched". Then
#: re-noised pictures take the likelihood's place in "group"; without the sampler's noise; and with an anchor, one each.
RUNGS: dict[str, Variant] = {
    "ddpo-is": Variant("ddpo-is"),
    "group": Variant("grpo", _GROUP),
    "two-steps": Variant("grpo", _TWO_STEPS),
    "noise-in-window": Variant("grpo", _QUIET),
    "one-step": Variant("grpo", _ONE_STEP),
    "equal-steps": Variant("grpo", _EQUAL),
    "branched": Variant("grpo", _BRANCHED),
    "antithetic": Variant("grpo", {**_BRANCHED, "antithetic": True}),
    "mask": Variant("grpo", {**_BRANCHED, "proximal": "mask"}),
    "re-noised": Variant("awm", _RENOISED),
    "re-noised-quiet": Variant("awm", _RENOISED_QUIET),
    "anchor-old": Variant("awm", {**_RENOISED_QUIET, "anchor_old": 1.0, "old_decay": 0.3}),
    "anchor-start": Variant("awm", {**_RENOISED_QUIET, "anchor_start": 0.1}),
}


def _alike(**common: object) -> dict[str, Mapping[str, object]]:
    """Return what all rungs share: images, updates and the size of a step."""
    shared = {"images_per_iteration": 64, "updates_per_iteration": 2, **common}
    return {"ddpo-is": shared, "grpo": shared, "awm": {**shared, "draws_per_image": 2}}


#: On the embedded model: the settings of ``jpeg`` for DDPO-IS.
_DDPO_IS = {"statistics_buffer": 16, "statistics_min_count": 4}
_EMBEDDED = _alike(num_envs=32, learning_rate=2e-3)
EMBEDDED_LADDER = Recipe(POLICY, {**_EMBEDDED, "ddpo-is": {**_EMBEDDED["ddpo-is"], **_DDPO_IS}})
EXACT_LADDER = Recipe(EXACT.policy, _alike(learning_rate=0.02), queries_per_evaluation=128)
