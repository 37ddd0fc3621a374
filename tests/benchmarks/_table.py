"""Writes a benchmark's table between two marker comments of a document."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def machine() -> str:
    """Processor, cores and python of the machine the figures come from."""
    cpu = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
        cpu = re.search(r"model name\s*:\s*(.+)", text)[1].strip()  # type: ignore[index]
        cores = text.count("processor\t")
    except (OSError, TypeError):
        cores = 0
    return f"{cpu}, {cores} cores, Python {platform.python_version()}"


def peak_bytes() -> int:
    """Largest resident memory of this process; what Linux's `getrusage` says begins at that of who started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1])  # type: ignore[index]
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else 1024 * peak


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(map(str, header)) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def write_section(document: str, marker: str, body: str) -> None:
    """Replace what stands between `<!-- marker:begin -->` and `<!-- marker:end -->`, or append it."""
    path = DOCS / document
    text = path.read_text() if path.exists() else f"# {document.removesuffix('.md').capitalize()}\n"
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    stamp = f"Measured {datetime.now(timezone.utc):%Y-%m-%d} on {machine()}."
    block = f"{begin}\n{stamp}\n\n{body.strip()}\n{end}"
    if begin in text:
        text = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: block, text, flags=re.DOTALL)
    else:
        text = text.rstrip() + f"\n\n{block}\n"
    path.write_text(text)
