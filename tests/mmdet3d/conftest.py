"""Makes this folder's helper modules importable; without mmdet3d they are not looked into for doctests."""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
collect_ignore = (
    [] if find_spec("mmdet3d") else ["mmdet3d_parts.py", "mmdet3d_script.py", "mmdet_pictures.py"]
)
