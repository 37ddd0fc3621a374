"""Where things stand: the repository, the scripts that tests start as processes, the real data."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRAININGS = ROOT / "tests" / "parts" / "trainings"
DATA = Path(os.environ.get("MLD_TEST_DATA", ROOT.parent / "shared" / "data"))
