"""The table of model families and checks in docs/families.md, from the families' tests as pytest collects them.

``python docs/tools/family_checks.py`` in the repository's root collects tests/families/test_every_family.py, without
running it (``make test`` does), and writes which test there is for which family. A family whose pipeline lacks a
setting has "none" in its column, as the test leaves it out.
"""

import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "families.md"
TESTS = ROOT / "tests" / "families" / "test_every_family.py"
#: Column -> the test, and which families it is not left out for.
CHECKS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "Gymnasium's own checks": ("test_gymnasium_has_nothing_to_say", lambda family: True),
    "pictures are the pipeline's": ("test_images_are_the_pipelines", lambda family: True),
    "with guidance": ("test_images_are_the_pipelines", lambda family: family.guidance != 1.0),
    "with noise": ("test_images_are_the_pipelines", lambda family: family.eta is not None),
    "ratio exactly 1": ("test_ratio_is_one_before_the_first_update", lambda family: True),
    "update, save, resume, export, reload": ("test_update_resume_and_export", lambda family: True),
    "LoRA's layers": ("test_groups_of_layers_are_the_networks", lambda family: True),
    "`train` and `sample`": ("test_one_command_for_every_family", lambda family: True),
}
_BLOCK = re.compile(r"(?P<head><!-- made by docs/tools/family_checks.py -->\n\n)(?P<table>.*?)(?=\n<!-- end -->)", re.S)


class Collected:
    """The cases that pytest collects: (test, case)."""

    def __init__(self) -> None:
        """Begin empty."""
        self.cases: set[tuple[str, str]] = set()

    def pytest_collection_modifyitems(self, items: Iterable[pytest.Item]) -> None:
        """Keep their names."""
        for item in items:
            test, _, case = item.name.rstrip("]").partition("[")
            self.cases.add((test, case))


def table(cases: Collection[tuple[str, str]], families: Mapping[str, Any]) -> str:
    """Return the table in Markdown.

    Args:
        cases: test and case, whose name begins with the family's.
        families: name -> what the tests know of it.
    """
    rows = []
    for name, family in families.items():
        others = tuple(f"{other}-" for other in families if other.startswith(f"{name}-"))
        own = {
            test
            for test, case in cases
            if f"{case}-".startswith(f"{name}-") and not (others and f"{case}-".startswith(others))
        }
        rows.append([name, *("tested" if test in own and has(family) else "none" for test, has in CHECKS.values())])
    lines = [["family", *CHECKS], ["---"] * (1 + len(CHECKS)), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def written() -> tuple[list[str], list[str]]:
    """Return the families and the checks that the page's table has; raises ValueError for a page without one."""
    block = _BLOCK.search(PAGE.read_text(encoding="utf-8"))
    if block is None:
        raise ValueError(f"{PAGE} has no block 'made by docs/tools/family_checks.py'.")
    head, _, *rows = [line.strip("| ").split(" | ") for line in block["table"].splitlines() if line]
    return [row[0] for row in rows], head[1:]


def main() -> int:
    """Collect the tests, and write the table; return pytest's exit code."""
    sys.path.insert(0, str(ROOT))
    from tests.builders.families import FAMILIES, VARIANTS

    collected = Collected()
    code = pytest.main(["--collect-only", "-q", "-p", "no:xdist", str(TESTS)], plugins=[collected])
    if code != 0:
        return int(code)
    made = table(collected.cases, {**FAMILIES, **VARIANTS}).splitlines(keepends=True)[: 2 + len(FAMILIES)]
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_BLOCK.sub(lambda match: match["head"] + "".join(made), page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
