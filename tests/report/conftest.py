import once
import pytest
from recorded_pictures import with_media

from ml_debugger.evaluator import Evaluator

HOSTILE = (
    "plain",
    "<script>document.title='broken'</script>",
    '"><img src=x onerror="document.title=\'broken\'">',
    "a&b</script>",
)
"""What the ids of val begin with."""


def _write(root, records, planted):
    """Two versions of a model, evaluated: names and ids that hold HTML, images, two epochs, faults, metadata."""
    patch = pytest.MonkeyPatch()
    factory = records.StoreFactory(root)
    names = ["<b>cat</b>", "dog & co", "cow", "hen", "pig", "a class with a rather long name"]
    for version, skill in (("v1", 0.7), ("v2", 1.0)):
        run = factory.run("net", version, n_class=6, class_names=names)
        for epoch in range(2):
            if epoch == 0:
                with_media(records, patch)
            train = planted(records, 700, seed=1, skill=skill, jitter=epoch).data
            val = planted(
                records, 900, seed=2, start=5000, noise=0.06, broken=0.08, skill=skill, jitter=epoch
            ).data
            val.ids = [f"{HOSTILE[number % 4]}{number}" for number in range(len(val.ids))]
            factory.add_pass(run, "train", train, n_epoch=epoch, batch=350)
            factory.add_pass(run, "val", val, n_epoch=epoch, batch=450)
            patch.undo()
        evaluator = Evaluator("net", version, store=root)
        options = {"progress": False, "threads": 2}
        evaluator.request_evaluation(f"all-{version}", None, options=options)
    evaluator.request_evaluation("latest-v2", options=options)


@pytest.fixture(scope="session")
def results(records, planted, tmp_path_factory):
    """Results of the two versions, and of the newest epoch of the second."""
    root = tmp_path_factory.mktemp("report") / "store"
    once.copied("report", lambda folder: _write(folder, records, planted), root)
    first, second = (Evaluator("net", version, store=root) for version in ("v1", "v2"))
    return {
        "v1": first.get_result("all-v1"),
        "v2": second.get_result("all-v2"),
        "latest": second.get_result("latest-v2"),
    }


class Opened:
    """A page in the browser, with all that went wrong on it."""

    def __init__(self, browser, path, **options):
        self.context = browser.new_context(offline=True, **options)
        self.page = self.context.new_page()
        self.problems, self.requests = [], []
        self.page.on("console", lambda said: self.problems.append(f"{said.type}: {said.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda asked: self.requests.append(asked.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]", timeout=60_000)

    def outside(self):
        """Requests for anything but the file itself and what is inside it."""
        return [url for url in self.requests[1:] if not url.startswith(("data:", "blob:"))]


@pytest.fixture
def opened(browser):
    """`opened(path, **options)` opens a page; all are closed at the end."""
    pages = []

    def start(path, **options):
        pages.append(Opened(browser, path, **options))
        return pages[-1]

    yield start
    for one in pages:
        one.context.close()
