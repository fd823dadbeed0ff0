"""What docs/stability.md lists, for the tests that compare it with the code."""

import re
from pathlib import Path

PAGE = (Path(__file__).parent.parent / "docs" / "stability.md").read_text()


def names(section, row=None):
    """The names in the tables of a section, stable or not; with `row` only those of one row."""
    _, _, rest = PAGE.partition(f"\n## {section}\n")
    assert rest, f"docs/stability.md has no section {section!r}"
    found = set()
    for line in rest.partition("\n## ")[0].splitlines():
        cells = line.split(" | ", 1)
        if line.startswith("| ") and len(cells) == 2 and row in (None, cells[0].removeprefix("| ").strip("`")):
            found |= set(re.findall(r"`([^`]+)`", cells[1]))
    assert found, f"docs/stability.md: {section} lists nothing of {row!r}"
    return found


def missing(found, section, row=None):
    """The found names that the page does not list."""
    return sorted(set(found) - names(section, row))


def missing_metrics(found):
    """The found metrics that the page does not list; a group's gradient is listed for all groups."""
    return missing({re.sub(r"^gradient/.*", "gradient/GROUP", name) for name in found}, "Metrics")
