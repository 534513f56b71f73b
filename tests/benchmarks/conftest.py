"""Snapshots: what a user reads on the terminal, kept in files that a reviewer can read too."""

import difflib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

SNAPSHOTS = Path(__file__).parent / "snapshots"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give tyro 100 columns and no colours, whatever runs the tests (in a capture it draws no boxes either)."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


@pytest.fixture
def snapshot() -> Callable[[str, str], None]:
    """Return ``check(name, text)``: the text must equal the file; ``make snapshots`` writes the file instead."""

    def check(name: str, text: str) -> None:
        file = SNAPSHOTS / f"{name}.txt"
        text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
        if os.environ.get("UPDATE_SNAPSHOTS"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            return
        kept = file.read_text(encoding="utf-8") if file.is_file() else ""
        if kept != text:
            lines = difflib.unified_diff(kept.splitlines(), text.splitlines(), "kept", "now", lineterm="")
            pytest.fail(
                f"{file.name} is not what the command prints. If the new text is right: make snapshots, read the "
                "diff, commit it.\n" + "\n".join(lines),
                pytrace=False,
            )

    return check
