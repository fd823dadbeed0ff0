"""What benchmarks whose work can fail have in common."""

from collections.abc import Callable, Sequence

from absl import flags

from omcda_jax.runner import frame


def main(argv: Sequence[str], usage: str, values: flags.FlagValues, work: Callable[[flags.FlagValues], bool]) -> int:
    """Run one command line as `frame.main` does, and return 1 where `work` returns False."""
    succeeded: list[bool] = []
    status = frame.main(argv, usage, values, lambda values: succeeded.append(work(values)))
    return status or int(succeeded == [False])
