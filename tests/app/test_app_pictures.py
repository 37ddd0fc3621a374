"""Pictures: recorded ones, and files of the reader's, of which no other file leaves the machine."""

import numpy as np
import pytest
from app_parts import opened

from mld_core.app.pictures import FromDataset, Pictures, Template, source_of
from mld_core.records.store.png import encode_png

NET = {"model": "net <i>", "version": "v/1"}
PNG = encode_png(np.full((4, 4, 3), 200, np.uint8))
pictures_of_a_data_set = [(np.full((6, 6), number, np.uint8), number % 3) for number in range(8)]


def test_recorded_pictures_are_shown_of_every_id(ann):
    rows = ann.get("samples", **NET, sort="input_id", limit=200)["rows"]
    assert all(one["picture"] for one in rows)
    for one in rows[::40]:
        answer = ann.ask("picture", **NET, split="val", id=one["id"])
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "image/png"
        assert "sandbox" in answer.headers["content-security-policy"]
    assert ann.ask("picture", **NET, split="val", id="nobody").status_code == 404


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "data"
    (made / "val").mkdir(parents=True)
    for name in ("plain0", "plain5"):
        (made / "val" / f"{name}.png").write_bytes(PNG)
    (made / "val" / "page.png").write_text("<svg onload=alert(1)>")
    (tmp_path / "secret.png").write_bytes(PNG)
    return made


def test_a_template_shows_files_of_its_folder_alone(folder, tmp_path):
    source = Template(f"{folder}/{{split}}/{{input_id}}.png")
    assert source.data("val", "plain0") == PNG
    for name in (
        "missing",
        "page",
        "../../secret",
        f"{tmp_path}/secret",
        "../../../../etc/passwd",
        "x\0",
        "",
        "n" * 300,
    ):
        assert source.data("val", name) is None
    assert source.data("../..", "secret") is None


@pytest.mark.parametrize(
    "text",
    [
        "relative/{input_id}.png",
        "/{nothing}.png",
        "/nowhere/at/all/{input_id}.png",
        "no.module:name",
        "what",
        "/x.csv",
        "~nouser/{input_id}.png",
        "~nouser/x.csv",
        f"/{'n' * 300}/{{input_id}}.png",
    ],
)
def test_what_means_nothing_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        source_of(text)


def test_a_csv_and_a_data_set_show_theirs(folder, tmp_path):
    table = tmp_path / "paths.csv"
    table.write_text(f"path,input_id\ndata/val/plain5.png,7\n{folder}/val/page.png,8\n/etc/passwd,9\n")
    source = source_of(str(table))
    assert source.data("val", "7") == PNG
    assert source.data("val", "8") is source.data("val", "9") is source.data("val", "10") is None
    table.write_text(f"5,data/val/plain5.png\n0,{folder}/val/plain0.png\n")  # without names of columns
    source = source_of(str(table))
    assert source.data("val", "5") == source.data("val", "0") == PNG
    held = FromDataset.__new__(FromDataset)
    held._found, held._splits = pictures_of_a_data_set, {}
    assert held.data("val", "3").startswith(b"\x89PNG")
    assert held.data("val", "99") is held.data("val", "x") is None


def test_pictures_are_set_in_the_page_and_remembered(shown_store, folder, tmp_path, monkeypatch):
    import shutil

    from mld_core.records.format.layout import Store

    shutil.copytree(shown_store.root, tmp_path / "store")
    store = Store(tmp_path / "store")
    text = f"{folder}/val/{{input_id}}.png"
    with opened(store) as client:
        said = client.post("pictures", {"images": text, **NET, "split": "val"}).json()
        assert (said["kind"], said["checked"], said["found"]) == ("template", 20, 2)
        assert said["missing"].endswith(".png")
        assert client.ask("picture", **NET, split="val", id="plain5").content == PNG
        refused = client.post("pictures", {"images": "nonsense"})
        assert refused.status_code == 400
    with opened(store) as client:
        assert client.get("pictures", **NET)["set"] == text
        assert client.post("pictures", {"images": None}).json()["set"] is None


def test_a_server_of_a_team_shows_none_of_its_disk(shown_store, folder):
    with opened(shown_store, pictures=Pictures(shown_store, allowed=False)) as client:
        assert client.post("pictures", {"images": f"{folder}/val/{{input_id}}.png"}).status_code == 403
        assert not client.get("pictures", **NET)["allowed"]
