"""The list of what was skipped: by reason, with the command where a system package is missing."""

from collections import Counter

from run_notes import lines


def test_reasons_are_counted_and_packages_named_once():
    reasons = Counter(
        {
            "no browser at /usr/bin/chromium: install the package chromium-headless-shell": 40,
            "PostgreSQL is not installed: install the package postgresql": 7,
            "needs a CUDA device": 3,
        }
    )
    made = lines(reasons)
    assert made[0].split(maxsplit=1) == [
        "40",
        "no browser at /usr/bin/chromium: install the package chromium-headless-shell",
    ]
    assert (
        "40 for want of the system package chromium-headless-shell, 7 for want of the system package postgresql"
        in made[-1]
    )
    assert made[-1].endswith("apt-get install -y --no-install-recommends chromium-headless-shell postgresql")


def test_no_package_no_command():
    assert lines(Counter({"needs a CUDA device": 3})) == ["    3  needs a CUDA device"]
