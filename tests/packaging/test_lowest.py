"""`make lowest`: every extra has tests that run on its lowest versions, and what went wrong is not passed over."""

import importlib.machinery
import importlib.util
import sys

import pytest
from folders import ROOT

tomllib = pytest.importorskip("tomllib", reason="in Python from 3.11")


@pytest.fixture(scope="module")
def lowest():
    loader = importlib.machinery.SourceFileLoader("lowest", str(ROOT / ".ci" / "lowest"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("lowest", loader))
    sys.modules["lowest"] = module  # dataclasses look their module up
    loader.exec_module(module)
    yield module
    del sys.modules["lowest"]


def test_every_extra_is_tested_on_its_lowest_versions_or_it_says_why_not(lowest):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    assert {*lowest.JOBS, *lowest.NOT_RUN} == {*extras, "base"}, (
        "name a new extra in JOBS of .ci/lowest, with its tests, or in NOT_RUN, with the reason"
    )
    assert not set(lowest.JOBS) & set(lowest.NOT_RUN)


def test_each_runs_where_it_is_installed_and_its_tests_exist(lowest):
    for name, job in lowest.JOBS.items():
        installed = lowest.ENVIRONMENTS[job.environment].extras.split(",")
        assert name == "base" or name in installed, f"{job.environment}: {name} is not installed there"
        for path in (one for one in job.tests if one.startswith("tests/")):
            assert (ROOT / path).exists(), f"{name}: {path}"


@pytest.mark.parametrize(
    ("attributes", "good"),
    [
        ('tests="5" skipped="2" failures="0" errors="0"', True),
        ('tests="5" skipped="2" failures="1" errors="0"', False),
        ('tests="5" skipped="0" failures="0" errors="1"', False),
        ('tests="1" skipped="1" failures="0" errors="0"', False),
    ],
    ids=["passed", "failed", "not collected", "all skipped"],
)
def test_an_extra_passes_where_something_ran_and_nothing_failed(lowest, tmp_path, attributes, good):
    report = tmp_path / "report.xml"
    report.write_text(f'<testsuites><testsuite name="pytest" {attributes}/></testsuites>')
    row = lowest.Row("lightning", "lightning 2.5.0", *lowest.counts(report), 1.0)
    assert row.good == good
    assert (
        f"| `lightning` | lightning 2.5.0 | {row.passed} | {row.skipped} | {row.failed} | 1 |"
        in lowest.table([row])
    )
