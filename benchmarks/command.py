"""The common frame of benchmarks with work that can fail."""

from collections.abc import Callable, Sequence

from absl import flags

from omcda_jax.runner import frame


def main(argv: Sequence[str], usage: str, values: flags.FlagValues, work: Callable[[flags.FlagValues], bool]) -> int:
    """Run one command line as `frame.main` does, and return 1 if `work` returns False."""
    succeeded: list[bool] = []
    status = frame.main(argv, usage, values, lambda values: succeeded.append(work(values)))
    return status or int(succeeded == [False])
