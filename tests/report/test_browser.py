from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from attrib_batch.analysis import write_agreement
from attrib_batch.report import write_report
from attrib_batch.spec import Cell
from tests.support.browser import assert_quiet, open_page
from tests.support.synthetic_run import IoiLike, write_run
from tests.support.synthetic_verification import estimated_from, write_exact

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def opened(browser: Chrome, tmp_path_factory: pytest.TempPathFactory) -> Chrome:
    out = tmp_path_factory.mktemp("run")
    pairs = IoiLike(without_heads=True).pairs(12)
    cells = {Cell("gpt2", "ioi", method): pairs for method in ("one", "two")}
    write_run(out, cells)
    write_exact(out, next(iter(cells)), estimated_from(pairs, bias=0.5))
    write_agreement(out, seed=0, resamples=20)
    path = write_report(out)
    open_page(browser, path)
    return browser


def eventually(browser: Chrome, script: str, wanted: object) -> None:
    """The browser applies media and size changes in its own time."""
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 10).until(
        lambda driver: driver.execute_script(script) == wanted, f"{script} never gave {wanted!r}"
    )


def test_the_page_asks_for_nothing_and_logs_no_error(opened: Chrome) -> None:
    assert_quiet(opened)


def test_every_figure_is_drawn_inside_its_column(opened: Chrome) -> None:
    widths = opened.execute_script(
        "return [...document.querySelectorAll('.plotly-graph-div')].map((div) => [div.id,"
        " div.classList.contains('js-plotly-plot') && div.querySelectorAll('.heatmaplayer image').length,"
        " div.querySelectorAll('.scatterlayer .point').length,"
        " div.querySelector('svg.main-svg').getBoundingClientRect().right,"
        " div.closest('figure').getBoundingClientRect().right])"
    )
    assert len(widths) == 22
    drawn = {"scores": 12 * 144, "means": 144}
    for name, images, points, right, limit in widths:
        if "-verified-" in name:
            assert points == drawn[name.rsplit("-", 1)[1]] / (1 if "-z-" in name else 12), name
        else:
            assert images == 1, name
        assert right <= limit + 1, name


def test_hovering_tells_everything(opened: Chrome) -> None:
    opened.execute_script("Plotly.Fx.hover('cell-0-z-last', [{xval: 9, yval: 9}])")
    text = opened.execute_script("return document.querySelector('#cell-0-z-last .hoverlayer').textContent")
    assert text.startswith("L9H9normalised +0.")
    assert "(95%)" in text
    assert "logits, sem 0." in text
    assert text.endswith("12 pairs in 6 sampling units")


def test_a_point_of_the_verification_tells_its_head(opened: Chrome) -> None:
    square = opened.execute_script(
        "const { xaxis, yaxis } = document.getElementById('cell-0-z-verified-means')._fullLayout;"
        "return [xaxis._length, yaxis._length, xaxis.range, yaxis.range]"
    )
    assert square[0] == pytest.approx(square[1], abs=1)
    assert square[2] == pytest.approx(square[3])
    opened.execute_script("Plotly.Fx.hover('cell-0-z-verified-means', [{curveNumber: 2, pointNumber: 0}])")
    text = opened.execute_script("return document.querySelector('#cell-0-z-verified-means .hoverlayer').textContent")
    assert text.startswith("L11H0mean exact +0.")
    assert "(95%)" in text


def test_clicking_a_column_sorts_the_table(opened: Chrome) -> None:
    rows = "document.querySelector('table.dense').tBodies[0].rows"
    names = f"return [...{rows}].map((row) => row.cells[0].textContent)"
    before = opened.execute_script(names)
    opened.execute_script("document.querySelector('table.dense th button').click()")
    down = opened.execute_script(names)
    opened.execute_script("document.querySelector('table.dense th button').click()")
    up = opened.execute_script(names)

    def by_layer(name: str) -> tuple[int, ...]:
        return tuple(map(int, name.removeprefix("L").split("H")))

    assert up == sorted(before, key=by_layer)
    assert down == up[::-1]
    assert before not in (up, down)


def test_colours_follow_the_reader_and_stay_diverging(opened: Chrome) -> None:
    middle = "return document.getElementById('cell-0-z-last').layout.coloraxis.colorscale[5][1]"
    for scheme, colour in (("dark", "rgb(33,38,45)"), ("light", "rgb(247,247,247)")):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        eventually(opened, middle, colour)


def test_a_narrow_screen_needs_no_sideways_scrolling(opened: Chrome) -> None:
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    eventually(opened, "return document.documentElement.scrollWidth <= 390", wanted=True)
