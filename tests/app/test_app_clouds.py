"""Points of 3D frames from the reader's files: formats, columns, bounds; real frames in which boxes hold what they should."""

import errno
import json
import os
import shutil
import struct

import numpy as np
import pytest
from app_parts import OPTIONS, opened
from boxes_store import write
from folders import DATA
from real_frames import real_store

from ml_debugger.evaluator import Evaluator
from mld_core.app.clouds.formats import CloudError, read_points
from mld_core.app.clouds.points import MOST_POINTS, Clouds
from mld_core.app.local import Options, clouds_of
from mld_core.geometry.boxes import count_points_in_boxes
from mld_core.records.format.layout import RunKey, Store

ROADS = {"model": "lidar", "version": "v1"}
XYZ = np.random.default_rng(0).uniform(-40, 40, (1_000, 3)).astype(np.float32)


def unpacked(content):
    (length,) = struct.unpack_from("<I", content)
    head = json.loads(content[4 : 4 + length])
    found = [
        np.frombuffer(content, "<f4", head["rows"], 4 + length + one["offset"]) for one in head["columns"]
    ]
    assert [one["name"] for one in head["columns"]] == ["x", "y", "z"]
    return head, np.stack(found, axis=1)


def with_more(*columns):
    return np.column_stack([XYZ, *columns]).astype("<f4")


SHARE = np.random.default_rng(1).random(len(XYZ))
KITTI = with_more(SHARE)
NUSCENES = with_more(255 * SHARE, np.arange(len(XYZ)) % 32)


def pcd(kind):
    head = (
        "# .PCD v0.7\nVERSION 0.7\nFIELDS intensity x y z\nSIZE 1 4 4 4\nTYPE U F F F\nCOUNT 1 1 1 1\n"
        f"WIDTH {len(XYZ)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(XYZ)}\nDATA {kind}\n"
    )
    if kind == "ascii":
        return head.encode() + "\n".join(f"7 {x} {y} {z}" for x, y, z in XYZ.tolist()).encode()
    rows = np.zeros(len(XYZ), [("i", "u1"), ("xyz", "<f4", 3)])
    rows["xyz"] = XYZ
    return head.encode() + rows.tobytes()


def npy(shape):
    """An array whose header names this shape."""
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(100)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("kitti.bin", KITTI.tobytes()),  # 1,000 points: the size fits 4 columns and 5
        ("nuscenes.pcd.bin", NUSCENES.tobytes()),
        ("binary.pcd", pcd("binary")),
        ("ascii.pcd", pcd("ascii")),
    ],
)
def test_a_file_tells_what_it_holds(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    np.testing.assert_allclose(read_points(tmp_path / name), XYZ, rtol=1e-6)


def test_an_array_is_read_and_what_is_not_finite_left_out(tmp_path):
    held = XYZ.astype(np.float64)
    held[3] = np.nan
    np.save(tmp_path / "a.npy", held)
    np.testing.assert_allclose(read_points(tmp_path / "a.npy"), np.delete(XYZ, 3, axis=0), rtol=1e-6)


def test_an_organised_cloud_of_mostly_nothing_and_one_without_points_are_clouds(tmp_path):
    held = XYZ.copy()
    held[: len(held) * 6 // 10] = np.nan  # a pixel that no beam came back to
    np.save(tmp_path / "a.npy", held)
    np.testing.assert_array_equal(read_points(tmp_path / "a.npy"), held[len(held) * 6 // 10 :])
    np.save(tmp_path / "b.npy", np.full((100, 3), np.nan))
    (tmp_path / "a.bin").write_bytes(b"")
    for kind in ("ascii", "binary"):
        head, _, _ = pcd(kind).replace(b"POINTS 1000", b"POINTS 0").partition(f"DATA {kind}\n".encode())
        (tmp_path / f"{kind}.pcd").write_bytes(head + f"DATA {kind}\n".encode())
    for name in ("a.bin", "b.npy", "ascii.pcd", "binary.pcd"):
        assert read_points(tmp_path / name).shape == (0, 3), name


def test_columns_are_asked_for_where_nothing_tells_them(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(with_more(100 * SHARE).tobytes())
    with pytest.raises(CloudError, match=r"may have 4 or 5 columns.*--points-columns"):
        read_points(file)
    np.testing.assert_array_equal(read_points(file, 4), XYZ)
    (tmp_path / "b.bin").write_bytes(with_more(100 * SHARE)[:7].tobytes())
    np.testing.assert_array_equal(read_points(file), XYZ)  # the file beside it has 4 or it has 7
    with pytest.raises(CloudError, match="no whole number of points of 7"):
        read_points(file, 7)


LASERS = np.concatenate([NUSCENES] * 27)  # 540,000 bytes
BRIGHT = with_more(255 * SHARE, SHARE * 99)  # five columns that no value tells apart


@pytest.mark.parametrize(
    ("whole", "cut", "said"),
    [
        (LASERS, 4_096 * 128, "values are those of 5 columns.*cut"),  # a whole number of points of 4 columns
        (KITTI, 12 * 997, "values are those of 4 columns.*cut"),  # of 3 columns
        (BRIGHT, 4_096 * 4, "by its size 4 columns.*files beside it 5: it was cut"),
        (BRIGHT, 4_999, "4,999 bytes are no whole number"),
    ],
)
def test_a_file_that_was_cut_is_refused_and_spoils_none_beside_it(tmp_path, whole, cut, said):
    for number in range(4):
        (tmp_path / f"{number}.bin").write_bytes(whole[7 * number :].tobytes())
    (tmp_path / "cut.bin").write_bytes(whole.tobytes()[:cut])
    with pytest.raises(CloudError, match=said):
        read_points(tmp_path / "cut.bin")
    np.testing.assert_array_equal(read_points(tmp_path / "1.bin"), whole[7:, :3])


def test_a_lone_file_that_was_cut_is_known_by_its_values(tmp_path):
    for whole, cut in ((LASERS, 4_096 * 128), (KITTI, 12 * 997)):
        (tmp_path / "cut.bin").write_bytes(whole.tobytes()[:cut])
        with pytest.raises(CloudError, match="it was cut"):
            read_points(tmp_path / "cut.bin")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.npy", KITTI.tobytes(), "no NumPy array"),
        ("a.txt", b"root:x:0", "expected a file ending in .bin, .npy, .pcd"),
        ("a.bin", b"root:x:0:0:root:/root:/bin/sh\n\n\n", "no metres"),
        ("a.bin", np.full((1_000, 4), 1e30, "<f4").tobytes(), "no metres"),
        ("a.npy", b"\x93NUMPY\x01\x00nonsense", "cannot be read as a NumPy array"),
        ("a.pcd", b"VERSION 0.7\nFIELDS a b\nDATA binary\n", "does not tell"),
        ("a.pcd", b"nothing", "header of a PCD"),
        ("a.pcd", pcd("binary_compressed"), "write it as ascii or binary"),
        ("a.npy", npy("(3000000000000, 3)"), "cannot be read as a NumPy array"),
        ("a.npy", npy("(1" + "0" * 30 + ", 3)"), "cannot be read as a NumPy array"),
        ("a.npy", npy("(3, 3L"), "cannot be read as a NumPy array"),
        ("a.pcd", pcd("binary").replace(b"POINTS 1000", b"POINTS 1" + b"0" * 30), "does not tell"),
        ("a.pcd", pcd("binary").replace(b"POINTS 1000", b"POINTS -1"), "does not tell"),
        ("a.pcd", pcd("ascii").replace(b"POINTS 1000", b"POINTS 1" + b"0" * 30), "it holds 1000"),
        ("a.pcd", pcd("ascii")[:-2_000], "it holds 9"),
    ],
)
def test_what_is_no_cloud_is_refused_in_a_sentence(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CloudError, match=said):
        read_points(tmp_path / name, 4 if b"r" not in data[:1] else None)


def test_objects_in_an_array_are_not_made(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[print, 1, 2]], object), allow_pickle=True)
    with pytest.raises(CloudError):
        read_points(tmp_path / "a.npy")


# -- routes ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(shown_store, tmp_path_factory):
    root = tmp_path_factory.mktemp("clouds") / "store"
    shutil.copytree(shown_store.root / "lidar", root / "lidar")
    return Store(root)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "velodyne"
    made.mkdir()
    rng = np.random.default_rng(2)
    far = rng.normal(0, 40, (200_000, 4))
    far[:, 3] = rng.random(len(far))
    (made / "frame-0001.bin").write_bytes(far.astype("<f4").tobytes())
    (made / "frame-0002.bin").write_bytes(KITTI.tobytes())
    (tmp_path / "secret.bin").write_bytes(KITTI.tobytes())
    return made


def test_points_are_set_sent_thinned_and_asked_for_again_only_where_they_changed(store, folder):
    with opened(store) as client:
        assert client.session["points"] == client.get("points")
        assert client.get("points")["set"] is None
        assert client.ask("cloud", **ROADS, id="frame-0002").status_code == 404
        told = client.post(
            "points", {"points": f"{folder}/{{input_id}}.bin", "columns": None, **ROADS}
        ).json()
        assert (told["found"], told["columns"]) == (2, None)
        assert told["missing"].endswith(".bin")
        answer = client.ask("cloud", **ROADS, id="frame-0001")
        head, xyz = unpacked(answer.content)
        assert head["rows"] == len(xyz) == MOST_POINTS
        assert head["of"] == 200_000
        assert np.hypot(*xyz[:, :2].T).max() <= head["reach"] < 120
        assert len(answer.content) < 13 * MOST_POINTS
        stamp = answer.headers["etag"]
        again = client.http.get(answer.url, headers={"if-none-match": stamp}, timeout=60)
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", stamp)
        os.utime(folder / "frame-0001.bin", (1, 1))
        assert client.http.get(answer.url, headers={"if-none-match": stamp}, timeout=60).status_code == 200
        for name in (
            "../secret",
            "frame-0009",
            f"{folder}/../secret",
            "x\0",
            "",
            "<b>road</b> & 0000",
            "n" * 300,
        ):
            assert client.ask("cloud", **ROADS, id=name).status_code == 404, name
    with opened(store) as client:  # it is remembered
        assert client.get("points")["set"].endswith("{input_id}.bin")
        body = {"points": f"{folder}/{{input_id}}.bin", "columns": 7, **ROADS}
        assert "no whole number" in client.post("points", body).json()["problem"]
        refused = client.ask("cloud", **ROADS, id="frame-0002")
        assert (refused.status_code, "--points-columns" in refused.json()["detail"]) == (415, True)
        for wrong in (
            *("nonsense", "os:getcwd", f"{folder}/{{input_id}}.txt", "relative/{input_id}.bin"),
            *("~nouser/{input_id}.bin", f"/{'n' * 300}/{{input_id}}.bin", "~nouser/a.csv"),
        ):
            assert client.post("points", {"points": wrong}).status_code == 400, wrong
        assert client.post("points", {"points": None}).json()["set"] is None


def test_columns_alone_are_those_of_the_points_that_are_remembered(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match=r"--points-columns 4: no points are set.*--points"):
        clouds_of(store, Options(columns=4))
    place = f"{tmp_path}/{{input_id}}.bin"
    assert clouds_of(store, Options(points=place)).columns is None
    assert clouds_of(store, Options(columns=4)).says().items() >= {"set": place, "columns": 4}.items()
    assert clouds_of(store, Options()).columns == 4
    (tmp_path / ".points.json").write_text(json.dumps({"points": "/gone/{input_id}.bin"}))
    with pytest.raises(ValueError, match=r"no points are set \(.*no folder /gone"):
        clouds_of(store, Options(columns=4))


def test_where_a_folder_is_gone_or_out_of_reach_a_sentence_says_so(tmp_path, monkeypatch):
    for text in ("~nouser/{input_id}.bin", f"/{'n' * 300}/{{input_id}}.bin"):
        (tmp_path / ".points.json").write_text(json.dumps({"points": text, "columns": None}))
        assert "set before are not there" in Clouds(Store(tmp_path)).says()["sentence"]
    clouds = Clouds(Store(tmp_path))
    table = tmp_path / "frames.csv"
    table.write_text("input_id,path\na,~nouser/a.bin\nb,lost.bin\n")
    clouds.set(str(table))

    def lost(path, *_, **__):
        raise OSError(errno.EIO, "Input/output error", str(path))

    assert clouds.check("val", ["a", "b"])["missing"].endswith("~nouser/a.bin")
    monkeypatch.setattr(os, "stat", lost)
    monkeypatch.setattr("pathlib.Path.stat", lost)
    told = clouds.check("val", ["b"])
    monkeypatch.undo()
    assert (told["found"], told["problem"]) == (0, "lost.bin: it cannot be read (Input/output error)")


def test_a_server_of_a_team_shows_no_points_of_its_disk(store, folder):
    (store.root / ".points.json").write_text(
        json.dumps({"points": f"{folder}/{{input_id}}.bin", "columns": None})
    )
    with opened(store, clouds=Clouds(store, allowed=False)) as client:
        assert client.post("points", {"points": f"{folder}/{{input_id}}.bin"}).status_code == 403
        assert not client.get("points")["allowed"]
        assert client.ask("cloud", **ROADS, id="frame-0002").status_code == 404
    (store.root / ".points.json").unlink()


# -- real frames ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kitti/000008.json", "nuscenes/n015.json"])
def test_boxes_of_a_real_frame_hold_the_points_that_are_sent(tmp_path, name):
    store, real, frame = real_store(tmp_path / "store", name)
    place = {"model": "real", "version": "v1"}
    table = tmp_path / "frames.csv"
    table.write_text(f"input_id,path\n{frame['input_id']},{(DATA / name).parent / real['points']}\n")
    with opened(store) as client:
        assert client.post("points", {"points": str(table), **place}).json()["found"] == 1
        row = client.get("samples", **place, filter="gt_idx is not null")["rows"][0]
        shown = client.get("sample", **place, row=row["row"])["frame"]
        _, xyz = unpacked(client.ask("cloud", **place, id=frame["input_id"]).content)
    units = [one for one in shown["units"] if one["truth_box"]]
    assert len(units) == len(real["objects"])
    stated = [real["objects"][one["gt_idx"]]["num_lidar_pts"] for one in units]
    counted = count_points_in_boxes(xyz, np.array([one["truth_box"] for one in units]))
    if name.startswith("kitti"):
        assert np.abs(counted - stated).max() <= 2  # boxes come rounded to millimetres
    else:
        assert np.minimum(counted, stated).sum() > 0.97 * sum(stated)
    matrix = np.array(shown["camera"]["to_image"]).reshape(3, 4)
    assert shown["camera_note"] is None
    for one in units if name.startswith("kitti") else ():
        label = real["objects"][one["gt_idx"]]
        if label["truncated"]:
            continue
        x, y, z, w, length, h, yaw = one["truth_box"]
        ends = [
            (x + a * length * np.cos(yaw) - b * w * np.sin(yaw), y + a * length * np.sin(yaw) + b * w * np.cos(yaw), z + c * h, 1)
            for a in (-0.5, 0.5) for b in (-0.5, 0.5) for c in (-0.5, 0.5)
        ]  # fmt: skip
        pixels = np.array(ends) @ matrix.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        found = np.concatenate([pixels.min(axis=0), pixels.max(axis=0)]).clip(0, [1242, 375] * 2)
        np.testing.assert_allclose(
            found, label["bbox_2d"], atol=12, err_msg="the image box was drawn by hand"
        )
    assert shown["camera"]["size"] == ([1242, 375] if name.startswith("kitti") else None)


EYE = {"lidar2cam": np.eye(4).tolist(), "cam2img": np.eye(3).tolist()}
UNKNOWN = {
    None: "No calibration",
    "no json": "No calibration",
    "[1]": "No calibration",
    "[" * 100_000: "No calibration",
    json.dumps({"cameras": [EYE] * 6}): "6 cam",
    json.dumps({"cameras": 6}): "No calibration",
    json.dumps({"cameras": [1, None]}): "No calibration",
    json.dumps({"lidar2cam": [[1, 2]], "cam2img": "x"}): "No calibration",
    json.dumps({**EYE, "cam2img": [[float("nan")] * 3] * 3}): "No calibration",
    json.dumps({**EYE, "cam2img": [[10**400] * 3] * 3}): "No calibration",
    json.dumps({**EYE, "cam2img": [[1], [2], [3]]}): "No calibration",
    json.dumps({name: (1e300 * np.eye(4)).tolist() for name in EYE}): "No calibration",
    json.dumps({"lidar2ego": "x"}): "No calibration",
}
SIZES = (
    (["a", None], None),
    ([0, 9], None),
    ([float("inf"), 1], None),
    (7, None),
    ([370, 1242], [1242, 370]),
)


def test_why_a_camera_is_not_known_is_said_whatever_stands_in_its_calibration(tmp_path):
    box = np.array([[10, 0, 0, 2, 4, 1.5, 0]], np.float32)
    own = {"box": box, "label": [0]}
    texts = [*UNKNOWN, *(json.dumps({**EYE, "image_size": size}) for size, _ in SIZES)]
    frames = [
        {"input_id": str(at), "calibration": text, "truths": own, "detections": {**own, "score": [0.9]}}
        for at, text in enumerate(texts)
    ]
    store = Store(tmp_path)
    write(store, RunKey("real", "v1"), "val", frames, "detection3d", class_names=["car"])
    Evaluator("real", "v1", store=tmp_path).request_evaluation("one", options=OPTIONS)
    with opened(store) as client:
        shown = [
            client.get("sample", model="real", version="v1", id=str(at))["frame"] for at in range(len(texts))
        ]
    for one, said in zip(shown, UNKNOWN.values(), strict=False):
        assert one["camera"] is None
        assert one["camera_note"].startswith(said)
    assert [one["camera"]["size"] for one in shown[len(UNKNOWN) :]] == [size for _, size in SIZES]
