"""``--help`` of every command, as a user reads it; and completion in the shell."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.__main__ import main

SNAPSHOTS = Path(__file__).parent / "snapshots" / "help"


def _help(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert not stop.value.code
    return capsys.readouterr().out


def test_help_of_every_command(
    snapshot: Callable[[str, str], None], terminal: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands are those that the help itself names, so that a new one cannot be forgotten."""
    waiting: list[list[str]] = [[]]
    names = set()
    while waiting:
        words = waiting.pop()
        text = _help(words, capsys)
        names.add("-".join(["diffusion-gym", *words]))
        snapshot(f"help/{'-'.join(['diffusion-gym', *words])}", text)
        waiting += [[*words, name] for name in re.findall(r"^ +• (\S+)", text, flags=re.MULTILINE)]
    assert {"diffusion-gym-train-rwr", "diffusion-gym-compare", "diffusion-gym-sample"} <= names
    stale = sorted(file.stem for file in SNAPSHOTS.glob("*.txt") if file.stem not in names)
    assert stale == [], "these commands are gone: delete their snapshots"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_and_choices(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--tyro-print-completion", "bash"])
    assert not stop.value.code
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out, encoding="utf-8")
    (tmp_path / "python3").symlink_to(sys.executable)  # the script asks python3
    ask = """
source "$1"; PATH="$2:$PATH"
[[ "$(complete -p diffusion-gym)" =~ -F\\ ([^ ]+) ]]; function="${BASH_REMATCH[1]}"
complete_words() { COMP_WORDS=(diffusion-gym "$@"); COMP_CWORD=$#; COMPREPLY=(); "$function"; echo "${COMPREPLY[@]}"; }
complete_words tr
complete_words train dd
complete_words train ddpo-is --policy.g
complete_words train ddpo-is --policy.trainable ""
"""
    done = subprocess.run(
        ["bash", "-c", ask, "bash", str(script), str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "train",
        "ddpo-is ddpo-sf",
        "--policy.guidance-scale --policy.gradient-checkpointing",
        "lora full",
    ]
