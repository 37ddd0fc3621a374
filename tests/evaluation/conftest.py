import pytest


@pytest.fixture
def factory(records, tmp_path, monkeypatch):
    """An empty store, at MLD_HOME."""
    root = tmp_path / "store"
    monkeypatch.setenv("MLD_HOME", str(root))
    monkeypatch.delenv("MLD_API_ENDPOINT", raising=False)
    monkeypatch.delenv("MLD_API_KEY", raising=False)
    return records.StoreFactory(root)


@pytest.fixture(scope="session")
def standard_store(records, tmp_path_factory):
    """A store with one finished run of two epochs; not to be written to but for results."""
    made = records.StoreFactory(tmp_path_factory.mktemp("standard") / "store")
    made.standard()
    return made.store


@pytest.fixture(scope="session")
def make_split():
    """`make_split(n, n_class, seed, ...)`: arrays of a split with a failing slice, and who is in it."""
    from synthetic_split import make_split as made

    return made


@pytest.fixture(scope="session")
def planted_run(records, planted, tmp_path_factory):
    """A run with three epochs of train and val (faults planted in val) and a test split without labels."""
    made = records.StoreFactory(tmp_path_factory.mktemp("planted") / "store")
    run = made.run("plan", "v1", n_class=6, class_names=[f"c{number}" for number in range(6)])
    for epoch in range(3):
        train = planted(records, 1000, seed=1, skill=0.8 + 0.1 * epoch, jitter=epoch).data
        made.add_pass(run, "train", train, n_epoch=epoch, batch=500)
        skill = 0.8 + 0.1 * epoch
        val = planted(records, 1400, seed=2, start=5000, noise=0.05, broken=0.06, skill=skill, jitter=epoch)
        made.add_pass(run, "val", val.data, n_epoch=epoch, batch=500)
    test = planted(records, 300, seed=3, start=9000, broken=0.1)
    test.data.labels[:] = -200
    made.add_pass(run, "test", test.data, n_epoch=2, batch=500)
    return made, run, val, test
