"""Evaluations in a process of their own.

What to do comes as JSON on stdin, what happens goes out as JSON lines. Started by
`mld_core.service.server.jobs.worker`. Ends at once when stdin is closed, so that nothing goes on working for
a worker that was killed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from queue import SimpleQueue

from mld_core.app.jobs.child import TOLD, evaluate, say, words
from mld_core.app.jobs.protocol import rows_asked
from mld_core.records.format.layout import RunKey, Store
from mld_core.service.server.children import limit_memory
from mld_core.service.server.storage.backends import FULL

_TOO_MUCH = "it takes more memory than an evaluation may (MLD_SERVER_JOB_MEMORY_MB of the server)"


def main() -> None:
    """Do one job after another and say how each went."""
    limit_memory(int(sys.argv[1]))
    lines: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read_stdin, args=(lines,), daemon=True).start()
    while True:
        work = json.loads(lines.get())
        try:
            run = RunKey(work["model_name"], work["version_name"])
            say(rows=rows_asked(Store(work["root"]), run, work["request"]))
            evaluate(work)
        except TOLD as error:
            # The scratch folder means nothing to whoever asked.
            say(failed=type(error).__name__, reason=words(error).replace(str(work["root"]), "the store"))
        except OSError as error:
            if error.errno not in FULL:
                raise
            say(full=error.errno)
        except Exception as error:
            if not isinstance(error, MemoryError) and "OutOfMemory" not in type(error).__name__:
                raise
            say(failed="MemoryError", reason=_TOO_MUCH)


def _read_stdin(lines: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(3)


if __name__ == "__main__":
    main()
