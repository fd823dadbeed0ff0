"""Which versions of packages are at work, recorded with datasets and results."""

import importlib.metadata


def installed(*packages: str) -> dict[str, str]:
    """Returns the versions of those of the packages that are installed, by name.

    Args:
        packages: distributions' names.
    """
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
