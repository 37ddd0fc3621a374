"""`mld report`: which result it writes, and how it says what is wrong."""

import json
import re

import pytest
from app_building import need_pages


def data_of(path):
    return json.loads(re.search(r'id="mld-data">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)[1])


def test_help(mld):
    told = mld("report", "--help").output
    for text in ("Examples:", "--json", "--store", "--output"):
        assert text in told
    assert "report" in mld("--help").output


@pytest.mark.parametrize(
    ("asked", "version"),
    [([], "v2"), (["v1"], "v1"), (["net/v1"], "v1"), (["net", "v1"], "v1"), (["net"], "v2")],
)
def test_one_result(mld, evaluated, tmp_path, asked, version):
    need_pages()
    path = tmp_path / "page.html"
    done = mld("report", *asked, "-o", path, "--store", evaluated)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.strip() == str(path)
    assert "MB" in done.stderr
    place = data_of(path)["place"]
    assert (place["model"], place["version"]) == ("net", version)


def test_two_results(mld, evaluated, tmp_path):
    need_pages()
    path = tmp_path / "page.html"
    done = mld("report", "v1", "v2", "-o", path, "--store", evaluated, "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["path"] == str(path)
    assert told["bytes"] == path.stat().st_size
    data = data_of(path)
    assert {one["before"]["version"] for one in data["compare"].values()} == {"v1"}
    assert data["place"]["version"] == "v2"
    assert data["left_out"] == told["left_out"]


def test_what_is_not_there(mld, evaluated, tmp_path):
    missing = mld("report", "v9", "--store", evaluated, "-o", tmp_path / "page.html")
    assert missing.exit_code == 3
    assert "v9" in missing.stderr
    nowhere = mld("report", "--store", evaluated, "-o", tmp_path / "no" / "page.html")
    assert nowhere.exit_code == 1
    assert "no/page.html" in nowhere.stderr
    assert "Traceback" not in nowhere.stderr
