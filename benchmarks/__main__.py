"""The command line: ``python -m benchmarks`` or ``diffusion-gym``."""

import sys
from typing import Annotated, Any, Union

import tyro

from algorithms import ALGORITHMS
from benchmarks.compare import Compare, compare
from benchmarks.pool import Stopped
from benchmarks.pretrain import PretrainConfig, pretrain
from benchmarks.report import Report, report
from benchmarks.sample import Sample, sample
from benchmarks.search import Search, search
from benchmarks.train import SUBCOMMANDS, Train, train

_Algorithm = Union[SUBCOMMANDS]  # type: ignore[valid-type]  # noqa: UP007 - built from the registry
Command = Union[  # noqa: UP007
    Annotated[
        tyro.conf.OmitSubcommandPrefixes[_Algorithm],
        tyro.conf.subcommand("train", description="Tune a model toward a reward with one algorithm."),
    ],
    Annotated[Compare, tyro.conf.subcommand("compare")],
    Annotated[Sample, tyro.conf.subcommand("sample")],
    Annotated[Report, tyro.conf.subcommand("report")],
    Annotated[PretrainConfig, tyro.conf.subcommand("pretrain")],
    Annotated[Search, tyro.conf.subcommand("search")],
]


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run the command, and return its exit status: 2 for a user's mistake, 130 for Ctrl-C."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(given)
    except Stopped:
        print("stopped; the same command resumes.")
        return 130
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(given: list[str]) -> int:
    options: Any = tyro.cli(
        Command,
        args=given,
        prog="diffusion-gym",
        description="Tune diffusion models with reinforcement learning: DDPO, RWR.",
    )
    if isinstance(options, Train):
        # The subcommand's name is the algorithm's; two names may share one configuration class.
        return train(next(word for word in given if word in ALGORITHMS), options)
    if isinstance(options, Compare):
        return compare(options)
    if isinstance(options, Sample):
        return sample(options)
    if isinstance(options, Report):
        return report(options)
    if isinstance(options, Search):
        return search(options)
    pretrain(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
