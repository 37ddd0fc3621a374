from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mld_core.records.format.layout import PassKey, RunKey
from mld_core.records.format.vectors import to_numpy
from mld_core.records.read.check import check_store
from mld_core.records.store.export import export_path, export_run

KEY = PassKey("val/1", 2)


def test_where_an_export_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunKey("my.model", "v/1")
    assert export_path(run) == tmp_path / "my%2Emodel_v%2F1.zip"
    assert export_path(run, "out") == Path("out/my%2Emodel_v%2F1.zip")
    assert export_path(run, "out/x.zip", 3) == Path("out/x.zip")
    assert export_path(run, "out.d", None) == Path("out.d/my%2Emodel_v%2F1.zip")
    assert export_path(run, "out", -1).name == "my%2Emodel_v%2F1_epoch--1.zip"


def test_an_export_holds_the_rows_that_count_and_their_digests(store, run, write_pass, tmp_path):
    hashes = ["h"] * 10
    write_pass(
        KEY,
        [
            (0, 10, {"hashes": hashes}),
            (10, 10, {"ids": [f"id-{row}" for row in range(10)], "hashes": hashes}),
        ],
    )
    write_pass(PassKey("train", None), [(0, 5, {})], seal=False)
    path = export_run(store, run, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "model%2Ea_v1.zip"
    assert sorted(os.listdir(path.parent)) == [path.name]
    with zipfile.ZipFile(path) as bundle:
        manifest = json.loads(bundle.read("manifest.json"))
        assert manifest["model_name"] == run.model_name
        assert manifest["run"]["task"] == "classification"
        by_split = {item["dataset_type"]: item for item in manifest["passes"]}
        assert by_split["val/1"]["duplicates_dropped"] == 10
        assert by_split["val/1"]["sealed"]
        assert by_split["train"]["missing_ranks"] == [0]
        listed = {name: info for item in manifest["passes"] for name, info in item["files"].items()}
        assert set(bundle.namelist()) == {"manifest.json", *listed}
        assert bundle.testzip() is None
        for name, info in listed.items():
            data = bundle.read(name)
            assert hashlib.sha256(data).hexdigest() == info["sha256"]
            assert len(data) == info["bytes"]
            assert pq.read_metadata(io.BytesIO(data)).num_rows == info["rows"]
        name = "val%2F1/epoch-2/pass-0/vectors.parquet"
        vectors = pq.read_table(io.BytesIO(bundle.read(name)))
        feat = to_numpy(vectors["feat"], vectors.schema.field("feat"))
        np.testing.assert_array_equal(feat[:, 0], np.arange(10, dtype=np.float16))
        assert listed[name]["vectors"]["feat"] == {"dtype": "float16", "shape": "[16]", "alias": "feat"}


def test_one_epoch_latest_and_replacing(store, run, write_pass, tmp_path):
    for epoch in range(2):
        write_pass(PassKey("val", epoch), [(0, 5, {})])
    target = tmp_path / "x.ZIP"
    for n_epoch, epochs in ((0, [0]), ("latest", [1]), (None, [0, 1])):
        assert export_run(store, run, target, n_epoch) == target
        with zipfile.ZipFile(target) as bundle:
            manifest = json.loads(bundle.read("manifest.json"))
        assert [item["n_epoch"] for item in manifest["passes"]] == epochs


def test_nothing_to_export_is_told_and_leaves_nothing(store, run, write_pass, tmp_path):
    write_pass(PassKey("val", 3), [(0, 5, {})])
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"n_epoch=7 .*recorded epochs: 3"):
        export_run(store, run, out, 7)
    assert not out.exists()
    (tmp_path / "a.zip").mkdir()
    with pytest.raises(IsADirectoryError, match="give the export a path of its own"):
        export_run(store, run, tmp_path / "a.zip")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        export_run(store, run, tmp_path / "file" / "x.zip")


# -- doctor ----------------------------------------------------------------------------------------------------


def kinds(store):
    return sorted(item.kind for item in check_store(store) if item.severity != "info")


def test_a_healthy_store_has_no_findings(store, run, write_pass):
    write_pass(KEY, [(0, 5, {})])
    assert check_store(store) == []
    assert check_store(type(store)(store.root / "nothing")) == []


def test_what_the_doctor_finds(store, run, write_pass):
    sealed = write_pass(PassKey("val", 0), [(0, 5, {})])
    write_pass(PassKey("val", 1), [(0, 5, {})], seal=False)
    assert kinds(store) == ["unsealed pass"]
    (part,) = [path for path in sealed.iterdir() if path.name.startswith("part-")]
    victim = part / "vectors.parquet"
    good = victim.read_bytes()
    victim.write_bytes(good[:60] + bytes([good[60] ^ 1]) + good[61:])
    findings = [item for item in check_store(store) if item.kind == "wrong digest"]
    assert [item.path for item in findings] == [victim]
    assert "restore it from a copy" in findings[0].message
    assert kinds(store) == ["unsealed pass", "wrong digest"]
    assert [item.kind for item in check_store(store, digests=False)] == ["unsealed pass"]
    victim.write_bytes(good[:-10])
    assert kinds(store) == ["torn part", "unsealed pass"]
    victim.write_bytes(good)
    seal = sealed / "seal.json"
    text = seal.read_text()
    seal.write_text(json.dumps({**json.loads(text), "format": 9}))
    assert kinds(store) == ["unknown format", "unsealed pass"]
    seal.write_text("{")
    assert kinds(store) == ["unreadable manifest", "unsealed pass", "unsealed pass"]
    seal.write_text(text)
    (store.run_dir(run) / "run.json").write_text("")
    assert kinds(store) == ["unreadable manifest", "unsealed pass"]


def test_lost_rows_are_a_finding(store, run, new_writer, put):
    writer = new_writer()
    handle = writer.open(PassKey("val", 0))
    put(writer, handle, 0, 5)
    writer.put(handle, lambda: {"samples": None}, rows=7, nbytes=1)
    assert writer.wait([writer.seal(handle)], 10)
    (finding,) = check_store(store)
    assert finding.kind == "lost rows"
    assert finding.message.startswith("7 rows were lost")
