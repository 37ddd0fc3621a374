"""The page in a browser: what it shows, that it fetches nothing, and that it works without a mouse."""

import itertools
import re

import pytest
from browser_parts import all_drawn

from mld_core.report import write_comparison, write_report

pytestmark = pytest.mark.processes

HOSTILE = "<script>document.title='broken'</script>"


@pytest.fixture(scope="module")
def report_file(results, tmp_path_factory):
    return write_report(results["v2"], tmp_path_factory.mktemp("page") / "report.html", former=True).path


@pytest.fixture(scope="module")
def comparison_file(results, tmp_path_factory):
    return write_comparison(
        results["v1"], results["v2"], tmp_path_factory.mktemp("page") / "compare.html"
    ).path


def cells(page, part):
    """The texts of the first table of a part, row by row."""
    return page.eval_on_selector_all(
        f"[data-part='{part}'] tbody tr",
        "rows => rows.map(row => [...row.children].map(cell => cell.innerText))",
    )


@pytest.mark.parametrize(
    ("which", "width", "scheme"),
    [
        ("report_file", 1280, "light"),
        ("report_file", 1280, "dark"),
        ("report_file", 400, "light"),
        ("report_file", 400, "dark"),
        ("comparison_file", 1280, "dark"),
        ("comparison_file", 400, "light"),
    ],
)
def test_opens_offline_without_a_complaint(request, opened, which, width, scheme):
    one = opened(
        request.getfixturevalue(which), viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    all_drawn(one.page)
    assert one.problems == []
    assert one.outside() == []
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width
    background = one.page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(value) for value in re.findall(r"\d+", background)[:3]) / 3
    assert (brightness > 200) == (scheme == "light")
    drawn = one.page.eval_on_selector_all(
        ".plot", "all => all.map(one => one.querySelectorAll('svg').length)"
    )
    assert len(drawn) >= (8 if which == "report_file" else 1)
    assert all(drawn)


def test_shows_what_the_tables_hold(results, report_file, opened):
    page = opened(report_file).page
    row = results["v2"].metrics_summary(full=True).query("dataset == 'val' and n_epoch == 1").iloc[0]
    tiles = dict(
        zip(
            page.locator(".tiles dt").all_inner_texts(),
            page.locator(".tiles dt + dd").all_inner_texts(),
            strict=True,
        )
    )
    assert tiles["Accuracy"] == f"{100 * row['accuracy']:.1f} %"
    assert tiles["Errors"] == str(int(row["count_error"]))
    codes = results["v2"].get_view("error_code", filter="dataset = 'val' and n_epoch = 1 and is_error = true")
    shown = cells(page, "code-table")
    assert len(shown) == min(12, len(codes))
    top = int(codes["counts"].max())
    assert shown[0][3] == str(top)
    ratios = results["v2"].issue_category_summary().query("dataset == 'val' and n_epoch == 1").iloc[0]
    share = {line[0].split("\n")[-1].strip(): line[1] for line in cells(page, "categories")[:6]}
    assert share["Stable coverage"] == f"{100 * ratios['stable_coverage_ratio']:.1f} %"
    assert len(page.locator(".gallery > li").all()) == 24


def test_hostile_names_are_only_text(report_file, comparison_file, opened):
    for path in (report_file, comparison_file):
        one = opened(path)
        assert "broken" not in one.page.title()
        assert one.page.locator("main b:has-text('cat')").filter(has_text=re.compile("^cat$")).count() == 0
        assert one.problems == []
    page = opened(report_file).page
    assert any(text.startswith(HOSTILE) for text in page.locator(".card h3").all_inner_texts())
    assert "<b>cat</b>" in page.locator("#confusion").inner_text().replace("\n", "")


def test_controls_change_the_page(results, report_file, opened):
    one = opened(report_file)
    page = one.page
    page.select_option("#epoch", label="epoch 0")
    assert "val, epoch 0" in page.locator("#live").inner_text()
    row = results["v2"].metrics_summary(full=True).query("dataset == 'val' and n_epoch == 0").iloc[0]
    assert f"{100 * row['accuracy']:.1f} %" in page.locator(".tiles").inner_text()
    page.get_by_role("button", name="Show val, epoch 1").first.click()
    assert page.locator("#epoch").input_value() == page.evaluate("String(DATA.first)")
    page.select_option("#split", "train")
    assert "train, epoch 1" in page.locator("[data-part='summary']").inner_text()
    page.select_option("#metric", "auroc")
    assert page.locator("#plot-epochs").get_attribute("aria-label").startswith("AUROC")
    page.get_by_role("radio", name="Counts").check()
    page.get_by_role("radio", name="Errors only").check()
    assert one.problems == []


def test_codes_sort_and_filter(report_file, opened):
    page = opened(report_file).page
    heading = page.locator("[data-part='code-table'] th", has_text="Confidence")
    heading.get_by_role("button").click()
    heading = page.locator("[data-part='code-table'] th", has_text="Confidence")
    assert heading.get_attribute("aria-sort") == "descending"
    values = [float(line[5]) for line in cells(page, "code-table")]
    assert values == sorted(values, reverse=True)
    assert page.evaluate("document.activeElement.dataset.key") == "confidence"
    page.keyboard.press("Enter")
    values = [float(line[5]) for line in cells(page, "code-table")]
    assert values == sorted(values)
    page.fill("#code-filter", "dog & co")
    assert all("dog & co" in line[1] + line[2] for line in cells(page, "code-table"))
    page.fill("#code-filter", "no such thing")
    assert cells(page, "code-table") == []


def test_everything_is_reached_by_keyboard(report_file, opened):
    page = opened(report_file).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    # Everything that can be pressed has a place in the tab order and a name.
    nameless = page.eval_on_selector_all(
        "button, select, input, summary, a[href]",
        """all => all.filter(one => one.tabIndex < 0 || !(one.textContent.trim() || one.labels?.length
             || one.getAttribute('aria-label'))).map(one => one.outerHTML.slice(0, 120))""",
    )
    assert nameless == []
    page.get_by_role("button", name=re.compile("^Show samples")).first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "group"
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    page.locator("details[open] table").wait_for()


def test_structure_for_screen_readers(report_file, comparison_file, opened):
    for path in (report_file, comparison_file):
        page = opened(path).page
        assert page.locator("html").get_attribute("lang") == "en"
        for role in ("banner", "main", "navigation"):
            assert page.get_by_role(role).count() == 1, role
        assert page.get_by_role("heading", level=1).count() == 1
        levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(one => Number(one.tagName[1]))")
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        unnamed = page.eval_on_selector_all(
            "section",
            "all => all.filter(one => !document.getElementById(one.getAttribute('aria-labelledby'))).length",
        )
        assert unnamed == 0
        bare = page.eval_on_selector_all(
            "table", "all => all.filter(one => !one.caption || !one.querySelector('th[scope=col]')).length"
        )
        assert bare == 0
        assert (
            page.eval_on_selector_all("img", "all => all.filter(one => !one.hasAttribute('alt')).length") == 0
        )
        assert (
            page.eval_on_selector_all(
                ".plot", "all => all.filter(one => !one.getAttribute('aria-label')).length"
            )
            == 0
        )
        double = page.evaluate(
            "() => { const ids = [...document.querySelectorAll('main [id], .rail [id]')].filter(one => !one.closest('svg')).map(one => one.id); return ids.length - new Set(ids).size; }"
        )
        assert double == 0


def contrast(page, selector):
    """Contrast of a text with the page's surface, WCAG 2.1."""
    return page.evaluate(
        """selector => {
          const parse = text => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
          const luminance = rgb => rgb.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const one = document.querySelector(selector);
          let behind = one;
          while (behind && getComputedStyle(behind).backgroundColor.endsWith(', 0)')) behind = behind.parentElement;
          const pair = [getComputedStyle(one).color, getComputedStyle(behind || document.body).backgroundColor]
            .map(text => luminance(parse(text))).sort((a, b) => b - a);
          return (pair[0] + 0.05) / (pair[1] + 0.05);
        }""",
        selector,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(report_file, opened, scheme):
    page = opened(report_file, color_scheme=scheme).page
    texts = (
        "h1",
        ".version",
        ".lead",
        ".tiles dt",
        ".tiles dd.note",
        "thead th",
        ".range",
        "nav a",
        "label",
        ".how",
        ".wrongmark",
    )
    marks = [f".mark.{name}" for name in page.evaluate("Object.keys(LETTER)")]
    low = {one: round(contrast(page, one), 2) for one in (*texts, *marks, "button.link", "code")}
    assert {one: value for one, value in low.items() if value < 4.5} == {}


def test_theme_can_be_chosen(report_file, opened):
    one = opened(report_file, color_scheme="light")
    colour = "getComputedStyle(document.body).backgroundColor"
    before = one.page.evaluate(colour)
    one.page.select_option("#theme", "dark")
    assert one.page.evaluate(colour) != before
    one.page.select_option("#theme", "system")
    assert one.page.evaluate(colour) == before
    assert one.problems == []


def test_comparison_shows_the_changes(results, comparison_file, opened):
    one = opened(comparison_file)
    counts = results["v1"].compare(results["v2"]).units.set_index("dataset").loc["val"]
    tiles = dict(
        zip(
            one.page.locator(".tiles dt").all_inner_texts(),
            one.page.locator(".tiles dt + dd").all_inner_texts(),
            strict=True,
        )
    )
    assert tiles["Fixed"] == str(counts["n_fixed"])
    assert tiles["Regressed"] == str(counts["n_regressed"])
    assert one.page.locator("[data-part='compare-fixed'] .card").count() == min(24, counts["n_fixed"])
    one.page.select_option("#split", "train")
    assert "train" in one.page.locator("[data-part='compare-summary']").inner_text()
    assert one.problems == []
