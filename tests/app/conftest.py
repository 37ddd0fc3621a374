import box_store
import numpy as np
import once
import pytest
import road_store as roads
import simulated_detector as simulation
from app_parts import HOSTILE, NAMES, OPTIONS, opened
from recorded_pictures import with_media

from ml_debugger.evaluator import Evaluator
from mld_core.records.format.layout import RunKey, Store


@pytest.fixture(scope="session")
def shown_store(records, planted, tmp_path_factory):
    """All three tasks, two epochs each, names and ids that hold HTML; and a run that is not evaluated."""
    root = tmp_path_factory.mktemp("app") / "store"
    return Store(once.copied("app", lambda folder: _write(folder, records, planted), root))


def _write(root, records, planted):
    factory = records.StoreFactory(root)
    run = factory.run("net <i>", "v/1", n_class=6, class_names=NAMES)
    patch = pytest.MonkeyPatch()
    with_media(records, patch)
    for epoch in range(2):
        train = planted(records, 500, seed=1, jitter=epoch).data
        val = planted(records, 600, seed=2, start=5000, noise=0.08, broken=0.08, jitter=epoch).data
        val.ids = [f"{HOSTILE[number % len(HOSTILE)]}{number}" for number in range(len(val.ids))]
        factory.add_pass(run, "train", train, n_epoch=epoch, batch=250)
        factory.add_pass(run, "val", val, n_epoch=epoch, batch=300)
        factory.add_pass(
            run, "test", planted(records, 200, seed=3, start=9000, jitter=epoch).data, n_epoch=epoch
        )
    patch.undo()
    store = Store(root)
    Evaluator("net <i>", "v/1", store=root).request_evaluation("all", None, options=OPTIONS)
    _boxes(store)
    _roads(store)
    fresh = factory.run("fresh", "v1", n_class=6)
    factory.add_pass(fresh, "train", planted(records, 50, seed=5).data, n_epoch=0)


def _boxes(store):
    run = RunKey("boxes", "v1")
    store.ensure_run(run, {"task": "detection", "n_class": 6, "class_names": box_store.NAMES})
    patch = pytest.MonkeyPatch()
    box_store.with_extras(patch)
    for epoch in range(2):
        scene = simulation.simulate(30, seed=4, faults=box_store.FAULTS, jitter=epoch)
        simulation.write(store, run, "val", scene, n_epoch=epoch)
    patch.undo()
    Evaluator("boxes", "v1", store=store.root).request_evaluation("boxes", None, options=OPTIONS)


def _roads(store):
    run = RunKey("lidar", "v1")
    true, spoilt, _ = roads.make_scenes(16)
    info = {"task": "detection3d", "n_class": 3, "class_names": ["car", "van", "<i>walker</i>"]}
    store.ensure_run(run, info)
    for epoch in range(2):
        rng = np.random.default_rng([5, epoch])
        said = [roads.detect(frame, rng, skill=0.8 + 0.1 * epoch) for frame in true]
        roads.write_pass(store, run, "val", spoilt, said, epoch)
    Evaluator("lidar", "v1", store=store.root).request_evaluation("roads", None, options=OPTIONS)


@pytest.fixture(scope="session")
def ann(shown_store):
    """A person who reads; what is written is taken back or of no weight to the others."""
    with opened(shown_store) as client:
        yield client


@pytest.fixture(scope="session")
def two_epochs(records, planted, tmp_path_factory):
    """The same store, where each run has a result of its first epoch too, "first"."""
    root = tmp_path_factory.mktemp("app") / "two"
    store = Store(once.copied("app", lambda folder: _write(folder, records, planted), root))
    for model, version in (("net <i>", "v/1"), ("boxes", "v1"), ("lidar", "v1")):
        Evaluator(model, version, store=root).request_evaluation("first", 0, options=OPTIONS)
    return store
