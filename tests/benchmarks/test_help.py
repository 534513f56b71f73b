"""``--help`` and ``--help-all`` of every command, as a user reads them; and completion in the shell."""

import dataclasses
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from algorithms import ALGORITHMS, EvaluationConfig, PolicyConfig
from benchmarks import parsing
from benchmarks.__main__ import COMMANDS, main
from benchmarks.commands.train import Output
from benchmarks.pretrain import PretrainConfig, WorldConfig
from benchmarks.runs.safeguards import Safeguards
from benchmarks.runs.spec import TaskConfig

SNAPSHOTS = Path(__file__).parent / "snapshots" / "help"


#: All pages; a new algorithm or command cannot be forgotten.
PAGES = [[], ["train"], *(["train", name] for name in ALGORITHMS), *([name] for name in COMMANDS)]
PAGES += [["pretrain", "emoji-world"]]
#: The long form is a snapshot for one algorithm of each class of configuration; others differ in their defaults only.
LONG = {type(entry.config): ["train", name] for name, entry in reversed(ALGORITHMS.items())}


def _name(words: list[str]) -> str:
    return "-".join(["diffusion-gym", *words])


def _help(words: list[str], capsys: pytest.CaptureFixture[str], flag: str = "--help") -> str:
    with pytest.raises(SystemExit) as stop:
        main([*words, flag])
    assert not stop.value.code
    return capsys.readouterr().out


def _flags(text: str) -> set[str]:
    """Return the options that a page lists, each by the name that begins its line."""
    return set(re.findall(r"^  (--[a-z][\w.-]*)", text, flags=re.MULTILINE))


@pytest.mark.parametrize("words", PAGES, ids=_name)
def test_help_of_every_command(
    words: list[str],
    snapshot: Callable[[str, str], None],
    terminal: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The short form fits 80 lines of 80 columns; the long form has what the short one hides, and what is parsed."""
    monkeypatch.setenv("COLUMNS", "80")
    short = _help(words, capsys)
    snapshot(f"help/{_name(words)}", short)
    assert len(short.splitlines()) <= 80
    if words[:-1] == ["train"] and words not in LONG.values():
        return
    everything = _help(words, capsys, "--help-all")
    if words in LONG.values():
        snapshot(f"help/{_name(words)}--help-all", everything)
    shown, found = _flags(short) - {"--help-all"}, _flags(everything)
    assert shown <= found
    hidden = re.search(r"--help-all +show all options: (\d+) more", short)
    assert len(found - shown) == (int(hidden[1]) if hidden else 0)
    monkeypatch.setattr(parsing, "HELP", {})  # tyro's own help, of what is parsed
    assert found == _flags(_help(words, capsys))


def test_the_options_of_every_run_come_first(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    short = _help(["train", "ddpo-is"], capsys)
    flags = re.findall(r"^  (--[\w-]+)", short, flags=re.MULTILINE)
    assert flags[:7] == ["--help-all", "--model", "--reward", "--prompts", "--reward-queries", "--seed", "--folder"]


def test_what_the_help_hides_are_options() -> None:
    kinds = [*LONG, PolicyConfig, EvaluationConfig, TaskConfig, Output, Safeguards, PretrainConfig, WorldConfig]
    for kind in kinds:
        names = {name for cls in kind.__mro__ for name in vars(cls).get("details", ())}
        assert names <= {field.name for field in dataclasses.fields(kind)}


def test_no_snapshot_is_stale() -> None:
    names = {_name(words) for words in PAGES} | {f"{_name(words)}--help-all" for words in LONG.values()}
    assert {file.stem for file in SNAPSHOTS.glob("*.txt")} == names


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
        "--policy.guidance-scale --policy.guidance-rescale --policy.gradient-checkpointing",
        "lora full",
    ]
