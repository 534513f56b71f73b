"""The command line: ``python -m benchmarks`` or ``diffusion-gym``."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from algorithms import ALGORITHMS
from algorithms.distributed import RankError, launched_size
from algorithms.files import user_path
from algorithms.skips import DivergedError
from benchmarks.compare import Compare, compare
from benchmarks.folder import WriteError
from benchmarks.pages import Tables, tables
from benchmarks.pretrain import PretrainConfig, pretrain
from benchmarks.repeat import CONFIG, recorded, repeat, take_config
from benchmarks.report import Report, report
from benchmarks.sample import Sample, sample
from benchmarks.search import Search, search
from benchmarks.stopping import Stopped, ended_at_once, status_of
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
        "train",
        description="Tune a model toward a reward with one algorithm; or train --config RUN: repeat a run, also with "
        "changes (--seed 1).",
    ),
]
Command: Any = Union[
    (_Train, *(Annotated[options, tyro.conf.subcommand(name)] for name, (options, _) in COMMANDS.items()))
]


#: ``~`` is the home folder in every option that is a path, also where no shell has replaced it (``--folder=~/runs``).
_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _user_path(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Path] | None:
    if info.type is not Path:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: user_path(words[0]),
        is_instance=lambda instance: isinstance(instance, Path),
        str_from_instance=lambda instance: [str(instance)],
    )


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run the command, and return its exit status.

    That is 2 for a user's mistake, a reward that failed, a training that diverged, a disk that cannot be written or a
    lost rank, 130 for Ctrl-C, 143 for SIGTERM.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        with ended_at_once(), _REGISTRY:
            return _run(given)
    except Stopped as stopped:
        print(stopped)
        return stopped.status
    except KeyboardInterrupt as interrupt:
        print("stopped; what was under way is not kept. The same command begins again.", file=sys.stderr)
        return status_of(interrupt)
    except (ValueError, MemoryError, RewardError, DivergedError, WriteError, RankError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # who read our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = "" if error.filename is None else f" {str(error.filename)!r}"
        print(
            f"error: cannot write{where}: {error.strerror or error}. Expected a place where you may write and there "
            "is space; name another with --folder or --output.",
            file=sys.stderr,
        )
        return 2


def _run(given: list[str]) -> int:
    """Parse with the named command's own options alone, so that an error speaks of no other command's."""
    if given and given[0] in COMMANDS:
        _check_one_process(given[0])
        options, command = COMMANDS[given[0]]
        return command(tyro.cli(options, args=given[1:], prog=f"{_PROGRAM} {given[0]}"))
    if given[:1] == ["train"]:
        repeated = take_config(given[1:])
        if repeated is not None:
            config, words = repeated
            name, recorded_options = recorded(config)
            if words[:1] and words[0] in ALGORITHMS:
                if words[0] != name:
                    raise ValueError(f"{str(config)!r} is a run of {name}, not of {words[0]}; leave out {words[0]}.")
                words = words[1:]
            return repeat(config, name, _train_options(name, words, recorded_options, f"{CONFIG} {config}"))
        if given[1:2] and given[1] in ALGORITHMS:
            name = given[1]
            return train(name, _train_options(name, given[2:], defaults(ALGORITHMS[name]), name))
    # What is left is help, shell completion or a mistake: all of them end in here.
    tyro.cli(
        Command,
        args=given,
        prog=_PROGRAM,
        description="Tune diffusion models with reinforcement learning: DDPO, RWR.",
    )
    raise AssertionError(f"no command among {given}")


def _train_options(name: str, words: list[str], default: Train[Any], said: str) -> Train[Any]:
    """Parse the options of ``train`` with one algorithm; what is not given is as in ``default``."""
    entry = ALGORITHMS[name]
    kind: Any = Train[type(entry.config)]  # type: ignore[misc]
    return tyro.cli(kind, args=words, default=default, prog=f"{_PROGRAM} train {said}", description=entry.summary)


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
