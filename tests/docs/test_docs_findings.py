"""What the pages of the findings hold beside the registry: a reason, a doubt, and mostly a picture of each."""

import pytest
from docs_parts import DOCS
from PIL import Image

from mld_core.evaluation.diagnoses import BY_CODE

yaml = pytest.importorskip("yaml")

PICTURES = DOCS / "images" / "findings"


def test_every_finding_says_why_it_matters_and_how_it_can_be_wrong():
    said = yaml.safe_load((DOCS / "site" / "findings.yml").read_text("utf-8"))
    assert list(said) == list(BY_CODE)
    for code, words in said.items():
        assert set(words) == {"why", "wrong"}, code
        assert all(len(text) > 40 and text.endswith(".") for text in words.values()), code


def test_most_findings_have_a_picture_that_loads_quickly():
    pictures = {path.stem: path for path in PICTURES.glob("*.webp")}
    assert set(pictures) <= set(BY_CODE)
    assert len(pictures) > len(BY_CODE) / 2
    for path in pictures.values():
        assert path.stat().st_size < 40_000, path
        with Image.open(path) as picture:
            assert min(picture.size) > 50
