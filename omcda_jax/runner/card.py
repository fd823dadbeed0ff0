"""`omcda-jax data`: the commands of omcda_jax.data, and the page of a dataset."""

import os
from collections.abc import Sequence

from omcda_jax import envs
from omcda_jax.data import __main__ as commands
from omcda_jax.data.formats import Contents
from omcda_jax.data.hdf5 import require_spec
from omcda_jax.envs.base import Environment, HostEnvironment
from omcda_jax.runner.frame import importing_pages
from omcda_jax.types import ConfigError, DatasetError


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit status.

    Args:
        argv: as of `omcda_jax.data.__main__.main`.
    """
    return commands.main(argv, write_page)


def write_page(path: str, name: str, contents: Contents, environment: str | None) -> str:
    """Write the page of a dataset and return its path.

    Args:
        path: of the page.
        name: of the dataset.
        contents: of it.
        environment: that it was made in; None: the one its file names.

    Raises:
        ConfigError: plotly is not installed, no such environment, or the page cannot be written.
        DatasetError: the environment that was named has other sizes.
    """
    with importing_pages():
        from omcda_jax.runner import dataset_page, page
    made = dataset_page.of_dataset(name, contents, _environment(name, contents, environment))
    return page.write(os.path.dirname(path), made, os.path.basename(path))


def _environment(name: str, contents: Contents, named: str | None) -> Environment | HostEnvironment | None:
    """The environment, where there is one; a file's own word imports nothing but what comes with the package."""
    found = named or contents.metadata.get("environment")
    if named is None and (not isinstance(found, str) or found.partition("/")[0] not in envs.FAMILIES):
        return None
    try:
        environment = envs.make(found)
        require_spec(name, environment.spec, contents.spec)
    except (ConfigError, DatasetError) as error:
        if named is not None:
            raise
        print(f"note: no pictures of the episodes: {error}")
        return None
    return environment
