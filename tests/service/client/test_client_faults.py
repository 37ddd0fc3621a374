"""The client against a service that is slow, lying, full, cut off or none at all: real HTTP, a fake server."""

from __future__ import annotations

import hashlib
import threading
import time

import numpy as np
import pytest
from client_fake import KEY, FakeService

from mld_core.evaluation.errors import AuthenticationError
from mld_core.records.format.attempts import list_attempts, list_passes
from mld_core.records.format.layout import PassKey, Store
from mld_core.records.write.retention import drop_features
from mld_core.records.write.writer import Writer, WriterOptions
from mld_core.service.client import api
from mld_core.service.client.api import Client
from mld_core.service.client.errors import (
    DamagedFileError,
    NoServiceError,
    ServiceError,
    ServiceUnreachableError,
)
from mld_core.service.client.sealed import LocalFile, read_sealed, sealed_folders
from mld_core.service.client.transport import Patience
from mld_core.service.client.uploader import Uploader

pytestmark = pytest.mark.processes

SHORT = Patience(1.0, first=0.05)
LONGER = Patience(15.0, first=0.05)


@pytest.fixture
def fake():
    service = FakeService()
    yield service
    service.kill()


@pytest.fixture
def made(records, tmp_path):
    """A store with one run of five small passes."""
    factory = records.StoreFactory(tmp_path / "store")
    return factory.store, factory.standard()


def client(fake, patience=LONGER, key=None):
    return Client(fake.url, key or KEY, patience)


def send_all(store, fake, patience=LONGER, **options):
    job = Uploader(store, client(fake, patience), **options)
    return [job.send(rank) for rank in job.plan(store.runs())], job


def upload(to, file, on_bytes=None):
    return to.upload(file.path, file.sha256, file.bytes, on_bytes)


def a_file(tmp_path, size, name="part.parquet"):
    content = np.random.default_rng(size).bytes(size)
    path = tmp_path / name
    path.write_bytes(content)
    return LocalFile(path, hashlib.sha256(content).hexdigest(), size)


# -- uploads that go well ------------------------------------------------------------------------------------


def test_every_sealed_rank_arrives_once_and_a_replay_is_a_no_op(made, fake):
    store, run = made
    rows, job = send_all(store, fake)
    assert [row.state for row in rows] == ["uploaded"] * 5
    seen = fake.seen()
    manifests = [read_sealed(folder).manifest for folder in sealed_folders(store, run)]
    assert sorted(map(str, seen["manifests"])) == sorted(map(str, manifests))
    sizes = {
        file.sha256: file.bytes for folder in sealed_folders(store, run) for file in read_sealed(folder).files
    }
    assert seen["blobs"] == {digest: [size, True] for digest, size in sizes.items()}
    assert seen["bytes_in"] == sum(sizes.values()) == sum(row.bytes for row in rows)

    again, job = send_all(store, fake)
    assert (again, job.skipped) == ([], 5)
    asked, _ = send_all(store, fake, again=True)
    assert [(row.state, row.bytes) for row in asked] == [("there", 0)] * 5
    after = fake.seen()
    assert after["bytes_in"] == seen["bytes_in"]
    assert after["counts"]["PUT blobs"] == seen["counts"]["PUT blobs"] == len(sizes)
    assert len(after["seals"]) == 5


def test_the_run_is_described_and_later_facts_follow(made, fake):
    store, run = made
    uploader = Uploader(store, client(fake))
    folders = list(sealed_folders(store, run))
    uploader.upload(folders[0])
    (there,) = fake.seen()["runs"]
    assert (there["model_name"], there["version_name"]) == (run.model_name, run.version_name)
    assert there["info"]["class_names"][0] == "cat"
    store.update_run_info(run, found_later=7)
    uploader.upload(folders[1])
    assert fake.seen()["runs"][0]["info"]["found_later"] == 7


def test_the_names_of_very_many_classes_stay_here_and_stop_no_upload(made, fake):
    store, run = made
    store.update_run_info(run, class_names=[f"a class with a long name {number}" for number in range(21_000)])
    told = []
    rows, _ = send_all(store, fake, on_problem=told.append)
    assert [row.state for row in rows] == ["uploaded"] * 5
    assert "class_names" not in fake.seen()["runs"][0]["info"]
    assert told == ["the names of 21000 classes are too many for the service: they stay here"]


def test_the_cut_attempt_that_a_resumed_pass_continues_goes_with_it(records, tmp_path, fake):
    store = Store(tmp_path / "store")
    run = records.StoreFactory(store.root).run()
    data, key = records.make_data(40), PassKey("train", 0)
    names = ["20261121T000001-abcdef-000", "20261121T000002-abcdef-000"]
    for number, attempt in enumerate(names):
        resumed = {"continues": names[0], "resume_step": 20} if number else {}
        writer = Writer(store, run, attempt=attempt, options=WriterOptions(fsync=False))
        handle = writer.open(key, **resumed)
        part = slice(20 * number, 20 * number + 20)
        made = records.tables(data, part, first_unit=part.start, rank=0)
        assert writer.put(handle, lambda made=made: made, rows=20, nbytes=1000)
        if number:
            assert writer.wait([writer.seal(handle)], 30)
        else:
            writer.abandon(handle)
        writer.close(30)
    rows, _ = send_all(store, fake)
    assert [row.state for row in rows] == ["uploaded"]
    found = {
        manifest["attempt"]["attempt"]: manifest["rows"]["samples"] for manifest in fake.seen()["manifests"]
    }
    assert found == {names[0]: 20, names[1]: 20}


def test_two_ranks_each_seal_their_own(records, tmp_path, fake):
    factory = records.StoreFactory(tmp_path / "store")
    run = factory.run()
    factory.add_pass(run, "val", records.make_data(60), world_size=2, sealing=(0, 1))
    factory.add_pass(run, "val", records.make_data(60), n_epoch=1, world_size=2, sealing=(1,))
    rows, _ = send_all(factory.store, fake)
    assert [row.state for row in rows] == ["uploaded"] * 3
    assert sorted((key[2], key[5]) for key in fake.seen()["seals"]) == [(0, 0), (0, 1), (1, 1)]


def test_features_that_are_dropped_while_they_are_sent(made, fake):
    store, run = made
    (folder,) = [one for one in sealed_folders(store, run) if "/test/" in str(one)]
    fake.set(hold=True)
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(Uploader(store, client(fake)).upload(folder)))
    thread.start()
    until = time.monotonic() + 20
    while not fake.seen()["counts"].get("PUT blobs") and time.monotonic() < until:
        time.sleep(0.02)
    rank = next(a.ranks[0] for k in list_passes(store, run, ["test"]) for a in list_attempts(store, run, k))
    assert drop_features(rank) > 0
    fake.set()
    thread.join(30)
    assert outcome[0].state in {"uploaded", "there"}
    (manifest,) = fake.seen()["manifests"]
    assert manifest["rows"]["samples"] == 150


# -- one file ------------------------------------------------------------------------------------------------


def test_an_upload_goes_on_where_it_was_cut(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(api, "PIECE_BYTES", 2 << 20)
    file = a_file(tmp_path, (5 << 20) + 17)
    fake.set(cuts=3, cut_after=700_000)
    through = []
    upload(client(fake), file, through.append)
    seen = fake.seen()
    assert seen["blobs"][file.sha256] == [file.bytes, True]
    assert seen["bytes_in"] == file.bytes  # not a byte twice
    assert sum(through) == file.bytes


def test_the_memory_of_an_upload_does_not_grow_with_the_file(tmp_path, fake):
    resource = pytest.importorskip("resource")
    file = a_file(tmp_path, 1 << 20, "warm.parquet")
    upload(client(fake), file)
    large = a_file(tmp_path, 64 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    upload(client(fake), large)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 24 << 10, f"{grown} KiB more at the peak"
    assert fake.seen()["blobs"][large.sha256] == [large.bytes, True]


def test_a_busy_service_is_waited_for_as_long_as_it_asks(tmp_path, fake):
    fake.set(busy=2)
    begun = time.monotonic()
    upload(client(fake), a_file(tmp_path, 1000))
    assert time.monotonic() - begun >= 2.0
    assert fake.seen()["counts"]["PUT blobs"] == 3


def test_a_proxy_that_takes_small_bodies_only_gets_small_ones(tmp_path, fake):
    file = a_file(tmp_path, 5 << 20)
    fake.set(proxy_limit=1 << 20)
    upload(client(fake), file)
    assert fake.seen()["blobs"][file.sha256] == [file.bytes, True]


def test_a_service_that_lies_is_left_alone_after_a_while(tmp_path, fake, made):
    store, run = made
    fake.set(mismatch=True)  # it says that our bytes are wrong
    with pytest.raises(ServiceUnreachableError, match="does not say the same twice"):
        upload(client(fake, SHORT), a_file(tmp_path, 1000))
    fake.set(stall=True)  # it takes bytes and has none
    with pytest.raises(ServiceUnreachableError, match="says it holds 0 of 1000 bytes"):
        upload(client(fake, SHORT), a_file(tmp_path, 1000))
    fake.set(forget=True)  # it confirms what it does not keep
    with pytest.raises(ServiceUnreachableError, match="keeps missing files"):
        Uploader(store, client(fake, SHORT)).upload(next(sealed_folders(store, run)))
    fake.set()
    rows, _ = send_all(store, fake)
    assert [row.state for row in rows] == ["uploaded"] * 5


def test_a_full_service_keeps_nothing_and_loses_nothing(made, fake):
    store, _ = made
    fake.set(full=True)
    with pytest.raises(ServiceUnreachableError, match=r"507: storage-full: make room"):
        send_all(store, fake, SHORT)
    assert fake.seen()["seals"] == []
    fake.set()
    rows, _ = send_all(store, fake)
    assert [row.state for row in rows] == ["uploaded"] * 5


def test_a_damaged_file_is_not_sent_and_does_not_stop_the_others(made, fake):
    store, run = made
    folders = list(sealed_folders(store, run))
    victim = read_sealed(folders[1]).files[0].path
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0xFF
    victim.write_bytes(content)
    cut = read_sealed(folders[2]).files[0].path
    cut.write_bytes(cut.read_bytes()[:-1])
    rows, _ = send_all(store, fake)
    assert [row.state for row in rows] == ["uploaded", "failed", "failed", "uploaded", "uploaded"]
    assert all("mld doctor" in row.message for row in rows if row.state == "failed")
    with pytest.raises(DamagedFileError, match="is damaged"):
        Uploader(store, client(fake)).upload(folders[2])
    assert len(fake.seen()["seals"]) == 3


# -- downloads -----------------------------------------------------------------------------------------------


def test_a_download_goes_on_where_it_was_cut_and_is_checked(tmp_path, fake):
    file = a_file(tmp_path, 3 << 20)
    upload(client(fake), file)
    fake.set(halves=2)
    target = tmp_path / "down"
    client(fake).download(file.sha256, target, file.bytes)
    assert target.read_bytes() == file.path.read_bytes()
    assert fake.seen()["counts"]["GET blobs"] == 3
    fake.set(garble=True)
    with pytest.raises(ServiceError, match="is not the file asked for"):
        client(fake).download(file.sha256, tmp_path / "other", file.bytes)
    assert not (tmp_path / "other").exists()


# -- who is there --------------------------------------------------------------------------------------------


def test_a_wrong_key_is_an_authentication_error(fake):
    with pytest.raises(AuthenticationError, match="did not accept the API key") as caught:
        client(fake, key="mldbg_wrong").whoami()
    assert "mldbg_wrong" not in str(caught.value)
    with pytest.raises(AuthenticationError, match="wants an API key"):
        Client(fake.url, None).whoami()
    with pytest.raises(AuthenticationError, match="copy it anew") as caught:
        Client(fake.url, "mldbg_a\nX-Other: 1")
    assert "X-Other" not in str(caught.value)


def test_what_is_no_service_is_a_connection_error(fake):
    fake.set(html=True, no_protocol=True)
    with pytest.raises(NoServiceError, match="is no ml_debugger service"):
        client(fake).whoami()
    fake.set(protocol="2.0")
    with pytest.raises(ConnectionError, match=r"protocol 2\.0.*upgrade ml-debugger here"):
        client(fake).whoami()
    fake.set(protocol="1.7")  # a later minor is spoken with
    assert client(fake).whoami()["organization"] == "us"
    fake.kill()
    begun = time.monotonic()
    with pytest.raises(ConnectionError, match="cannot reach the service"):
        client(fake, SHORT).whoami()
    assert time.monotonic() - begun < 15


def test_a_redirect_takes_no_key_anywhere(fake):
    other = FakeService()
    try:
        fake.set(redirect=f"{other.url}/v1/whoami")
        with pytest.raises(NoServiceError, match=f"answers to {other.url}"):
            client(fake).whoami()
        assert other.seen()["counts"] == {}
    finally:
        other.kill()


def test_the_key_is_ours_and_not_that_of_netrc(fake, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert client(fake).whoami()["organization_id"] == "org_1"
    assert fake.seen()["headers"][-1]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "url",
    ["localhost:8765", "ftp://host", "http://", "http://user:word@host", "http://host:x", "http://host/?a=1"],
)
def test_an_address_that_is_none_is_said(url):
    with pytest.raises(ValueError, match="MLD_API_ENDPOINT"):
        Client(url, None)
