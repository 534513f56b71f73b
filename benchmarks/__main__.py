"""The command line: ``python -m benchmarks`` or ``diffusion-gym``."""

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, Union

import tyro

from algorithms import ALGORITHMS
from algorithms.distributed import RankError, launched_size
from algorithms.skips import DivergedError
from benchmarks.compare import Compare, compare
from benchmarks.folder import DiskFullError
from benchmarks.pages import Tables, tables
from benchmarks.pretrain import PretrainConfig, pretrain
from benchmarks.repeat import Repeat, repeat
from benchmarks.report import Report, report
from benchmarks.sample import Sample, sample
from benchmarks.search import Search, search
from benchmarks.settings import named_model
from benchmarks.sweep import Stopped
from benchmarks.throughput import Throughput, throughput
from benchmarks.train import SUBCOMMANDS, Train, defaults, train
from diffusion_gym.rewards import RewardError

#: Name -> options and what runs them; ``train``, which has a subcommand an algorithm, stands beside.
COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "compare": (Compare, compare),
    "sample": (Sample, sample),
    "report": (Report, report),
    "pretrain": (PretrainConfig, pretrain),
    "search": (Search, search),
    "tables": (Tables, tables),
    "throughput": (Throughput, throughput),
}

_PROGRAM = "diffusion-gym"
_Algorithm = Union[SUBCOMMANDS]  # type: ignore[valid-type]  # noqa: UP007 - built from the registry
_Train = Annotated[
    tyro.conf.OmitSubcommandPrefixes[_Algorithm],
    tyro.conf.subcommand(
        "train", description="Tune a model toward a reward with one algorithm; or train --config RUN: repeat a run."
    ),
]
Command: Any = Union[
    (_Train, *(Annotated[options, tyro.conf.subcommand(name)] for name, (options, _) in COMMANDS.items()))
]


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run the command, and return its exit status.

    That is 2 for a user's mistake, a reward that failed, a training that diverged, a full disk or a lost rank, 130 for
    Ctrl-C.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(given)
    except Stopped:
        print("stopped; the same command resumes.")
        return 130
    except (ValueError, MemoryError, RewardError, DivergedError, DiskFullError, RankError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        print(
            f"error: cannot write {str(error.filename)!r}: {error.strerror}. Expected a place where you may write; "
            "name another with --folder or --output.",
            file=sys.stderr,
        )
        return 2
    except BrokenPipeError:  # who read our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(given: list[str]) -> int:
    """Parse with the named command's own options alone, so that an error speaks of no other command's."""
    if given and given[0] in COMMANDS:
        _check_one_process(given[0])
        options, command = COMMANDS[given[0]]
        default = Throughput.of_model(named_model(given[1:])) if options is Throughput else None
        return command(tyro.cli(options, args=given[1:], default=default, prog=f"{_PROGRAM} {given[0]}"))
    if given[:1] == ["train"] and given[1:2] and given[1] in ALGORITHMS:
        entry, model = ALGORITHMS[given[1]], named_model(given[2:])
        kind: Any = Train[type(entry.config)]  # type: ignore[misc]
        options = tyro.cli(
            kind,
            args=given[2:],
            default=defaults(given[1], model),
            prog=f"{_PROGRAM} train {given[1]}",
            description=f"{entry.summary} Defaults follow --model; these are for {model}.",
        )
        return train(given[1], options)
    if given[:1] == ["train"] and given[1:] and given[1].partition("=")[0] == "--config":
        return repeat(tyro.cli(Repeat, args=given[1:], prog=f"{_PROGRAM} train"))
    # What is left is help, shell completion or a mistake: all of them end in here.
    tyro.cli(
        Command,
        args=given,
        prog=_PROGRAM,
        description="Tune diffusion models with reinforcement learning: DDPO, RWR.",
    )
    raise AssertionError(f"no command among {given}")


def _check_one_process(command: str) -> None:
    """Raise ValueError where a launcher has started several processes, which would all do the same."""
    if launched_size() > 1:
        raise ValueError(
            f"{command} was started on {launched_size()} ranks (WORLD_SIZE), but only train shares its work among "
            f"them, and every rank would do all of it. Start it without accelerate launch or torchrun: diffusion-gym "
            f"{command} ..."
        )


if __name__ == "__main__":
    sys.exit(main())
