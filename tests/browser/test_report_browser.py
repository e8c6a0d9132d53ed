"""The report in headless Chromium: sorting, filtering, hovering, choices, dark and light, phone width, no requests."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from report_support import METRICS, invented_cards
from vcbench.data_specs.cli_support import run
from vcbench.evaluator.cli import cli

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
SHARED = Path(os.environ.get("VCBENCH_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report of 14 entries with training curves."""
    folder = tmp_path_factory.mktemp("report")
    names = [f"model {chr(ord('a') + k)}" for k in range(13)]
    invented_cards(folder / "cards", [*names, "mean"], n_rows=40, refused=[1])
    lines = [{"epoch": i, "loss": 1 / (i + 1), "valid_mse": 0.5 / (i + 1)} for i in range(6)]
    (folder / "run").mkdir()
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["report", folder / "cards", "--run", f"net={folder / 'run'}", "-o", folder / "report.html"]
    assert run(cli, [str(word) for word in words]) == 0
    return folder / "report.html"


@pytest.fixture
def browser(page, tmp_path):
    with opened(page, tmp_path / "profile") as driver:
        yield driver


@contextmanager
def opened(page, profile):
    """The page in Chromium; afterwards nothing else may have been asked for, and nothing said on the console."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in [*QUIET.split(), f"--user-data-dir={profile}", "--window-size=1280,900"]:
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.get("about:blank")
    for log in ("browser", "performance"):
        driver.get_log(log)
    driver.get(page.as_uri())
    yield driver
    assert driver.get_log("browser") == []
    asked = set()
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(message["params"]["request"]["url"])
    driver.quit()
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}


def js(browser, code, *arguments):
    return browser.execute_script(code, *arguments)


def column(browser, table, index):
    code = "return [...document.querySelectorAll('table.data')[arguments[0]].tBodies[0].rows]"
    code += ".filter(r => !r.hidden).map(r => r.cells[arguments[1]].textContent.trim())"
    return js(browser, code, table, index)


def test_sorting(browser):
    header = "document.querySelectorAll('table.data')[0].tHead.rows[0].cells[0]"
    before = column(browser, 0, 0)
    js(browser, f"{header}.querySelector('button').click()")
    assert column(browser, 0, 0) == sorted(before) and js(browser, f"return {header}.ariaSort") == "ascending"
    js(browser, f"{header}.querySelector('button').click()")
    assert column(browser, 0, 0) == sorted(before, reverse=True)
    values = "document.querySelectorAll('table.data')[0].tHead.rows[0].cells[2]"
    js(browser, f"{values}.querySelector('button').click()")
    numbers = [float(text.split()[0]) for text in column(browser, 0, 2)]
    assert numbers == sorted(numbers) and js(browser, f"return {header}.ariaSort") is None


def test_filtering(browser):
    box = browser.find_elements("css selector", "input[type=search]")[0]
    box.send_keys("MODEL c")
    assert column(browser, 0, 0) == ["model c"]
    assert "1 of 14 rows" in browser.find_element("id", "leaderboard").text
    js(browser, "arguments[0].value = ''; arguments[0].dispatchEvent(new Event('input'))", box)
    assert len(column(browser, 0, 0)) == 14


def test_hovering_and_focus(browser):
    point = browser.find_element("css selector", "#metrics circle")
    webdriver.ActionChains(browser).scroll_to_element(point).move_to_element(point).perform()
    tip = browser.find_element("id", "tip")
    assert tip.is_displayed() and "95% interval" in tip.text and "perturbations" in tip.text
    js(browser, "document.querySelector('#metrics circle').blur()")
    webdriver.ActionChains(browser).move_to_element(browser.find_element("css selector", "h1")).perform()
    assert not tip.is_displayed()
    js(browser, "document.querySelectorAll('#rows circle')[3].focus()")
    assert tip.is_displayed() and "K562/G0" in tip.text


CHOOSE = """
const box = document.getElementById(arguments[0]);
box.value = arguments[1];
box.dispatchEvent(new Event("change"));
"""
WORST = """
const rows = document.querySelector("#rows .ends table").tBodies[0].rows;
return [...rows].map(row => Number(row.cells[1].dataset.value));
"""


def test_choices_draw_anew(browser):
    choices = (
        ("metrics", "metric", "mae"),
        ("strata", "strata-metric", "mae"),
        ("curves", "curve", "valid_mse"),
    )
    for section, box, value in choices:
        drawn = f"return document.querySelector('#{section} .chart').innerHTML"
        before = js(browser, drawn)
        js(browser, CHOOSE, box, value)
        after = js(browser, drawn)
        assert after != before and value in after
    options = js(browser, "return [...document.getElementById('row-metric').options].map(o => o.value)")
    assert options == list(METRICS)
    worst = js(browser, WORST)
    assert len(worst) == 10 and worst == sorted(worst)


def test_dark_light_and_print(browser):
    paper = "return getComputedStyle(document.body).backgroundColor"
    seen = [js(browser, paper)]
    for _ in range(2):
        js(browser, "document.getElementById('theme').click()")
        seen.append(js(browser, paper))
    assert seen[0] != seen[1] and seen[0] == seen[2]
    js(browser, "document.getElementById('theme').click()")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert js(browser, paper) == "rgb(255, 255, 255)"
    assert js(browser, "return getComputedStyle(document.querySelector('nav')).display") == "none"


def test_a_phone_scrolls_tables_not_the_page(browser):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    browser.refresh()
    width, page_width = js(browser, "return [document.documentElement.scrollWidth, innerWidth]")
    assert width == page_width == 390
    assert js(browser, "const t = document.querySelector('.scroll'); return t.scrollWidth > t.clientWidth")
    assert js(browser, "return document.querySelector('#metrics svg').getBoundingClientRect().width") <= 390


def norman_report(folder):
    """The report of a small leaderboard on the Norman 2019 subset."""
    source = SHARED / "norman2019_subset.h5ad"
    if not source.exists():
        pytest.skip(f"needs {source.name} (VCBENCH_SHARED_DATA names its folder)")
    data, split = folder / "data.h5ad", folder / "split.csv"
    steps = [
        ["data", "convert", source, "--spec", "norman2019_subset", "-o", data],
        ["data", "split", data, "--scheme", "gears-simulation", "--seed", "1", "-o", split],
    ]
    models = ("mean", "additive", "matching-mean", "perturbation-mean", "no-change")
    for model in models:
        run_folder, pred = folder / f"run-{model}", folder / f"{model}.h5ad"
        steps += [
            ["train", model, data, "--split", split, "-o", run_folder],
            ["predict", run_folder, "-o", pred],
            [
                "score",
                pred,
                "--truth",
                data,
                "--edition",
                "core",
                "--split",
                split,
                "-o",
                folder / "scores" / model,
            ],
        ]
    shown = ["--pred", f"matching-mean={folder / 'matching-mean.h5ad'}", "--truth", data]
    steps.append(["report", folder / "scores", *shown, "-o", folder / "report.html"])
    (folder / "scores").mkdir()
    for step in steps:
        assert run(cli, [str(word) for word in step]) == 0, step
    return folder / "report.html"


def demo_report(folder):
    """The report of the demo."""
    assert run(cli, ["demo", "-o", str(folder / "demo"), "--quiet"]) == 0
    return folder / "demo" / "report.html"


DRAWN = "return [...document.querySelectorAll('.chart')].map(c => c.querySelectorAll('circle, rect').length)"


@pytest.mark.parametrize("make", [norman_report, demo_report])
def test_real_reports(make, tmp_path):
    made = make(tmp_path)
    for name, size in (("desktop", None), ("phone", PHONE)):
        with opened(made, tmp_path / name) as browser:
            if size is not None:
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                browser.refresh()
            assert js(browser, "return document.documentElement.scrollWidth <= innerWidth")
            charts = js(browser, DRAWN)
            assert len(charts) >= 5 and min(charts) > 0
