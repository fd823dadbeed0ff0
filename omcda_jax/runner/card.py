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
        argv: as in `omcda_jax.data.__main__.main`.
    """
    return commands.main(argv, write_page)


def write_page(path: str, name: str, contents: Contents, environment: str | None) -> str:
    """Write the page of a dataset and return its path.

    Args:
        path: the page's path.
        name: the dataset's name.
        contents: the dataset's contents.
        environment: name of the environment it was made in; None: the one that its file names.

    Raises:
        ConfigError: plotly is not installed, there is no such environment, or the page cannot be written.
        DatasetError: the named environment has other sizes.
    """
    with importing_pages():
        from omcda_jax.runner import dataset_page, page
    made = dataset_page.of_dataset(name, contents, _environment(name, contents, environment))
    return page.write(os.path.dirname(path), made, os.path.basename(path))


def _environment(name: str, contents: Contents, named: str | None) -> Environment | HostEnvironment | None:
    """The environment, if there is one. A name in the file imports only environments that come with the package."""
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
