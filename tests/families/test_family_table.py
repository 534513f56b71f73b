"""The table of families and checks in docs/families.md is made of the tests as they are."""

import ast
import runpy
from pathlib import Path

from tests.builders.families import FAMILIES, VARIANTS

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "tools" / "family_checks.py"))


def test_the_table_has_every_family_and_every_check() -> None:
    """A family or check that is new: run ``python docs/tools/family_checks.py``."""
    families, checks = TOOL["written"]()
    assert families == list(FAMILIES)
    assert checks == list(TOOL["CHECKS"])
    tests = {node.name for node in ast.parse(TOOL["TESTS"].read_text()).body if isinstance(node, ast.FunctionDef)}
    assert {test for test, _ in TOOL["CHECKS"].values()} <= tests


def test_a_case_counts_for_its_own_family_and_what_a_pipeline_lacks_is_none() -> None:
    images, families = "test_images_are_the_pipelines", {"sd": FAMILIES["sd"], "sd-v": VARIANTS["sd-v"]}
    families |= {"sd3": FAMILIES["sd3"], "ddpm": FAMILIES["ddpm"]}
    cases = {(images, f"{name}-True-False") for name in ("sd-v", "sd3", "ddpm")}
    made = TOOL["table"](cases, families).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")][2:5] for line in made]
    assert cells[0] == ["none", "none", "none"]
    assert cells[1] == ["tested", "tested", "tested"]
    assert cells[2] == ["tested", "tested", "none"]
    assert cells[3] == ["tested", "none", "tested"]
