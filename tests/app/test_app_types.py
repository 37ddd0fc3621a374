"""The types that the pages are written against hold of what the server answers: every route, every task."""

import json
import subprocess
from urllib.parse import quote

import pytest
from folders import ROOT

WEB = ROOT / "mld_core" / "app" / "web"
TSC = WEB / "node_modules" / ".bin" / "tsc"
PLACES = {
    "classification": {"model": "net <i>", "version": "v/1"},
    "detection": {"model": "boxes", "version": "v1"},
    "detection3d": {"model": "lidar", "version": "v1"},
}
OPTIONS = (
    *("--noEmit", "--strict", "--exactOptionalPropertyTypes", "--skipLibCheck", "--pretty", "false"),
    *("--module", "esnext", "--moduleResolution", "bundler", "--target", "es2022"),
)


def answers(client):
    """(route of `Reads` or `Writes`, an answer) of every route."""
    for route in ("session", "vocabulary", "runs", "points"):
        yield f'Reads["{route}"]', client.get(route)
    yield 'Writes["points"]', client.post("points", {"points": None, **PLACES["detection3d"]}).json()
    job = client.post("jobs", {"model": "fresh", "version": "v1"}).json()
    yield 'Writes["jobs"]', job
    yield 'Reads["jobs"]', client.get("jobs")
    assert client.delete(f"jobs/{job['job_id']}").status_code == 200
    runs = ",".join(f"{quote(one['model'], '')}/{quote(one['version'], '')}" for one in PLACES.values())
    yield 'Reads["training"]', client.get("training", runs=runs)
    for place in PLACES.values():
        rows = client.get("samples", **place, limit=80)["rows"]
        shown = next(one for one in rows if one.get("asks") != "object")
        item = {"row": shown["row"], "kind": "hard"}
        yield 'Writes["verdicts"]', client.post("verdicts", {**place, "items": [item]}).json()
        yield 'Reads["verdicts"]', client.get("verdicts", **place)
        filters = ("", "is_error = true")
        for route in ("evaluation", "samples", "facets", "confusion", "heatmap", "filter"):
            for condition in filters:
                yield f'Reads["{route}"]', client.get(route, **place, filter=condition)
        yield 'Reads["samples"]', client.get("samples", **place, sort="-confidence", limit=80)
        for row in rows[:6]:
            yield 'Reads["sample"]', client.get("sample", **place, row=row["row"])
        yield 'Reads["position"]', client.get("position", **place, row=rows[0]["row"])
        for route in ("run", "curves", "columns-info", "suspects", "export/formats", "pictures", "map"):
            yield f'Reads["{route}"]', client.get(route, **place)
        itself = {**place, "a_model": place["model"], "a_version": place["version"]}
        for route in ("compare", "compare/pairs"):
            yield f'Reads["{route}"]', client.get(route, **itself)
        several = ",".join([f"{quote(place['model'], '')}/{quote(place['version'], '')}//"] * 3)
        yield 'Reads["compare/many"]', client.get("compare/many", of=several)
        yield 'Reads["compare/many/rows"]', client.get("compare/many/rows", of=several, kind="all")
        undone = client.post("verdicts/undo", {**place, "last": True})
        yield 'Writes["verdicts/undo"]', undone.json()
        looked = {"code": "C01", "limit": 3, "dry_run": True}
        yield 'Writes["verdicts/accept"]', client.post("verdicts/accept", {**place, **looked}).json()
        names = {"runs": [place], "do": "remove", "dry_run": True}
        yield 'Writes["runs/bulk"]', client.post("runs/bulk", names).json()


@pytest.mark.skipif(not TSC.exists(), reason="TypeScript is not installed: npm ci in mld_core/app/web")
def test_the_types_of_the_pages_hold_of_every_answer(ann, tmp_path):
    """A member that no type names fails, too: literals are checked for what is too much."""
    source = (WEB / "src" / "data" / "source").as_posix()
    lines = [f"import type {{ Reads, Writes }} from {json.dumps(source)};"]
    lines += [
        f"export const a{n}: {kind} = {json.dumps(body)};" for n, (kind, body) in enumerate(answers(ann))
    ]
    file = tmp_path / "answers.ts"
    file.write_text("\n".join(lines), encoding="utf-8")
    done = subprocess.run([TSC, *OPTIONS, file], capture_output=True, text=True, timeout=300, check=False)
    told = [line.rpartition("answers.ts")[2] for line in done.stdout.splitlines() if line.strip()]
    assert (told, done.returncode) == ([], 0), "\n".join(told)[:6000]
