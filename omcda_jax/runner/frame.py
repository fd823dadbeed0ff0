"""The common frame of the commands that take flags and at most one other word."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

from absl import flags, logging

from omcda_jax.system import exit_status, read_flags
from omcda_jax.types import ConfigError


@contextlib.contextmanager
def importing_pages() -> Iterator[None]:
    """Import modules of pages in the block; a missing package gives an error of one line.

    Raises:
        ConfigError: a package of the extra `report` is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"no page: it needs a package ({error}): pip install 'omcda-jax[report]'") from error


def main(argv: Sequence[str], usage: str, values: flags.FlagValues, work: Callable[..., None], place: str = "") -> int:
    """Read a command line, do the work or show the help, and return the exit status.

    Args:
        argv: the program's name and flags.
        usage: text to begin the help with.
        values: the flags, from `system.new_flags`.
        work: takes the parsed flags, and the other word; raises ConfigError or DatasetError.
        place: what the other word stands for; empty: there is none.
    """
    # with absl's default, jax reports every accelerator that it does not find
    logging.set_verbosity(logging.WARNING)
    return exit_status(functools.partial(_run, argv, usage, values, work, place))


def _run(argv, usage, values, work, place):
    words = read_flags(values, argv)
    if values.help:
        print(f"{usage.strip()}\n{values.get_help()}")
        return
    if words and not place:
        raise ConfigError(f"expected flags only, found {' '.join(words)!r}")
    if place and len(words) != 1:
        raise ConfigError(f"expected {place}, found {' '.join(words) or 'none'}")
    work(values, *words)
