"""What the pages presume."""

import pytest
import store_factory as records
from planted import planted


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """What the documents presume: two versions of MyModel, with columns of the user's own."""
    made = records.StoreFactory(tmp_path_factory.mktemp("docs") / "store")
    for version, skill in (("v1", 0.8), ("v2", 1.0)):
        run = made.run("MyModel", version, n_class=6)
        for epoch in (0, 1):
            train = planted(records, 600, seed=1, skill=skill, jitter=epoch).data
            made.add_pass(run, "train", with_scene(train), n_epoch=epoch, batch=300)
            val = planted(
                records, 800, seed=2, start=5000, noise=0.05, broken=0.06, skill=skill, jitter=epoch
            )
            made.add_pass(run, "val", with_scene(val.data), n_epoch=epoch, batch=300)
    return made.store.root


def with_scene(data):
    """Three units in a row are of one scene."""
    data.fields["scene"] = [f"scene {number // 3}" for number in range(data.rows)]
    return data
