"""Versions of the installed packages, recorded with datasets and results."""

import importlib.metadata


def installed(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed, by name.

    Args:
        packages: names of distributions.
    """
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
