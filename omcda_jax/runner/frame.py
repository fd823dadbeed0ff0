"""What the commands that take flags alone have in common."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags, logging

from omcda_jax.system import exit_status, read_flags
from omcda_jax.types import ConfigError


def new_flags() -> tuple[flags.FlagValues, Callable[..., None]]:
    """Return empty flags with --help, and `define(kind, name, default, help)` that adds one to them."""
    values = flags.FlagValues()

    def define(kind: str, name: str, default: Any, text: str) -> None:
        getattr(flags, f"DEFINE_{kind}")(name, default, text, flag_values=values)

    flags.DEFINE_boolean("help", False, "Show this.", short_name="h", flag_values=values)
    return values, define


@contextlib.contextmanager
def importing_pages() -> Iterator[None]:
    """Turn the lack of a package, while modules of pages are imported in the block, into one line.

    Raises:
        ConfigError: a package of the extra `report` is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"no page, it needs a package ({error}): pip install 'omcda-jax[report]'") from error


def main(argv: Sequence[str], usage: str, values: flags.FlagValues, work: Callable[[flags.FlagValues], None]) -> int:
    """Read a command line, do the work or show the help, and return the exit status.

    Args:
        argv: the program's name and flags.
        usage: text to begin the help with.
        values: the flags, from `new_flags`.
        work: takes the flags that were read; raises ConfigError or DatasetError.
    """
    # absl's default makes jax report every accelerator it does not find
    logging.set_verbosity(logging.WARNING)
    return exit_status(functools.partial(_run, argv, usage, values, work))


def _run(argv, usage, values, work):
    words = read_flags(values, argv)
    if values.help:
        print(f"{usage.strip()}\n{values.get_help()}")
        return
    if words:
        raise ConfigError(f"expected flags only, found {' '.join(words)!r}")
    work(values)
