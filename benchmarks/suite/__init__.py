"""What ``compare`` runs: ``tasks``, ``recipes``, ``claims``, and ``suites``, which combines them.

To add a task, an algorithm's settings or a suite, add a few lines to the file of that name.
"""

from benchmarks.suite.claims import CLAIMS, Claim, Variant
from benchmarks.suite.recipes import EMBEDDED, GENEVAL, MODERN, MODERN_GENEVAL, POLICY, PRESETS, SETTINGS, Recipe
from benchmarks.suite.suites import SUITES, Comparison, Suite
from benchmarks.suite.tasks import EXACT_TASKS, GENEVAL_TASK, PAPER_TASKS, PROMPTS, STABLE_DIFFUSION_TASKS, TASKS, Task

__all__ = [
    "CLAIMS",
    "EMBEDDED",
    "EXACT_TASKS",
    "GENEVAL",
    "GENEVAL_TASK",
    "MODERN",
    "MODERN_GENEVAL",
    "PAPER_TASKS",
    "POLICY",
    "PRESETS",
    "PROMPTS",
    "SETTINGS",
    "STABLE_DIFFUSION_TASKS",
    "SUITES",
    "TASKS",
    "Claim",
    "Comparison",
    "Recipe",
    "Suite",
    "Task",
    "Variant",
]
