"""Which versions of packages are at work, recorded with datasets and results."""

import importlib.metadata


def installed(*packages: str) -> dict[str, str]:
    """Return the versions of those of the packages that are installed, by name.

    Args:
        packages: distributions' names.
    """
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
