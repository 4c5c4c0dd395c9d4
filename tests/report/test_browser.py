from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from attrib_batch.analysis import write_agreement
from attrib_batch.report.page import read_material, render
from attrib_batch.spec import Cell
from attrib_batch.storage.store import Store
from tests.support.browser import assert_quiet, open_page
from tests.support.synthetic_report import examples_frame, stability_frame, with_tests
from tests.support.synthetic_run import IoiLike, write_run
from tests.support.synthetic_verification import estimated_from, write_exact

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser

HOSTILE = [
    "</script><script>window.hurt = 1</script>",
    "<img src=x onerror='window.hurt=1'>",
    "\u202egnirts",
    "\U0001f469\u200d\U0001f52c",
    "\"'`",
]


@pytest.fixture(scope="module")
def opened(browser: Chrome, tmp_path_factory: pytest.TempPathFactory) -> Chrome:
    """A page with everything that a page can have: two methods, verified, with templates, examples and stability."""
    out = tmp_path_factory.mktemp("run")
    pairs = [
        replace(pair, template=f"T{pair.pair_id % 3}{HOSTILE[0] if pair.pair_id % 3 == 0 else ''}")
        for pair in IoiLike(without_heads=True).pairs(12)
    ]
    cells = {Cell("gpt2", "ioi", method): pairs for method in ("one", "two")}
    write_run(out, cells)
    write_exact(out, next(iter(cells)), estimated_from(pairs, bias=0.5))
    write_agreement(out, seed=0, resamples=20)
    material = read_material(Store(out))
    tokens = {pair.pair_id: [HOSTILE[i % len(HOSTILE)] for i in range(pair.n_tokens)] for pair in pairs}
    frame = examples_frame(cells, material.summary, n_heads=4, tokens=tokens)
    material = replace(
        material, summary=with_tests(material.summary), examples=frame, stability=stability_frame(list(cells))
    )
    path = out / "report.html"
    path.write_text(render(material), encoding="utf-8")
    open_page(browser, path)
    return browser


def eventually(browser: Chrome, script: str, wanted: object) -> None:
    """The browser applies media and size changes, and draws figures, in its own time."""
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 10).until(
        lambda driver: driver.execute_script(script) == wanted, f"{script} never gave {wanted!r}"
    )


def test_the_page_asks_for_nothing_and_logs_no_error(opened: Chrome) -> None:
    assert_quiet(opened)
    assert opened.execute_script("return window.hurt === undefined")


def test_figures_are_drawn_once_they_come_near_the_screen(opened: Chrome) -> None:
    far = "return document.getElementById('sweep-z-1').dataset.drawn"
    assert opened.execute_script(far) is None
    opened.execute_script("document.getElementById('sweep-z-1').scrollIntoView()")
    eventually(opened, far, "yes")


def test_every_figure_is_drawn_inside_its_column(opened: Chrome) -> None:
    opened.execute_script("figures.charts.forEach(figures.draw)")
    found = opened.execute_script(
        "return [...document.querySelectorAll('.chart')].map((div) => [div.id,"
        " div.querySelectorAll('.heatmaplayer image').length, div.querySelectorAll('.scatterlayer .point').length,"
        " div.querySelector('svg.main-svg').getBoundingClientRect().right,"
        " div.closest('figure').getBoundingClientRect().right])"
    )
    assert len(found) == 27
    points = {"z-verified-scores": 12 * 144, "z-verified-means": 144, "mlp_out-verified-scores": 144}
    points |= {"mlp_out-verified-means": 12, "z-stability": 12, "stability": 12}
    for name, images, n_points, right, limit in found:
        expected = points.get(name.split("-", 2)[2])
        assert (images, n_points) == ((1, 0) if expected is None else (0, expected)), name
        assert right <= limit + 1, name


def point_at(browser: Chrome, div_id: str, column: int, row: int, *, click: bool = False) -> None:
    """Move the mouse over a cell of a map."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    chart = browser.find_element(By.ID, div_id)
    browser.execute_script("arguments[0].scrollIntoView({ block: 'center', behavior: 'instant' })", chart)
    browser.execute_script("figures.draw(arguments[0])", chart)
    x, y = browser.execute_script(
        "const { xaxis, yaxis } = arguments[0]._fullLayout;"
        "return [xaxis._offset + xaxis.d2p(arguments[1]) - arguments[0].clientWidth / 2,"
        " yaxis._offset + yaxis.d2p(arguments[2]) - arguments[0].clientHeight / 2]",
        chart, column, row,
    )  # fmt: skip
    moved = ActionChains(browser).move_to_element_with_offset(chart, int(x) - 2, int(y)).pause(0.1)
    moved = moved.move_to_element_with_offset(chart, int(x), int(y)).pause(0.2)
    (moved.click() if click else moved).perform()


TIP = "return document.getElementById('tip').hidden ? '' : document.querySelector('#tip b').textContent"


def test_hovering_tells_everything(opened: Chrome) -> None:
    point_at(opened, "cell-0-z-answer", 9, 9)
    eventually(opened, TIP, "L9H9")
    lines = opened.execute_script("return [...document.querySelectorAll('#tip > *')].map((line) => line.textContent)")
    assert lines[0] == "L9H9"
    assert lines[1].startswith("mean score, normalised: +0.")
    assert "95% interval +0." in lines[1]
    assert lines[2].endswith(" logits")
    assert lines[3] == "n = 12 pairs in 6 sampling units"


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


PANEL = "return document.getElementById('panel').hidden ? null : document.getElementById('panel').innerText"


def test_clicking_a_head_in_a_table_or_a_map_shows_its_examples(opened: Chrome) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    opened.execute_script("document.querySelector('.head[data-head=\"0/z/9/9\"]').click()")
    text = opened.execute_script(PANEL)
    assert text.startswith("L9H9")
    assert "Largest values" in text
    assert "Smallest values" in text
    opened.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    assert opened.execute_script(PANEL) is None

    point_at(opened, "cell-1-z-answer", 7, 10, click=True)
    eventually(opened, "return document.getElementById('panel-title').textContent", "L10H7")
    assert "gpt2 x ioi x two" in opened.execute_script(PANEL)
    opened.execute_script("document.getElementById('panel-close').click()")


def test_a_head_without_examples_says_how_to_get_them(opened: Chrome) -> None:
    opened.execute_script("examples.open([0, 'z', 0, 3])")
    text = opened.execute_script(PANEL)
    assert 'run.examples(component="z", layer=0, head=3, at="end", model="gpt2"' in text
    assert "in 50% of the pairs" in text or "% of the pairs: from" in text
    opened.execute_script("examples.close()")


def test_hostile_tokens_are_text_and_move_nothing(opened: Chrome) -> None:
    opened.execute_script("examples.open([0, 'z', 9, 9])")
    tokens = opened.execute_script("return [...document.querySelectorAll('#panel .token')].map((t) => t.textContent)")
    assert HOSTILE[0] in tokens
    assert "⟨202E⟩gnirts" in tokens
    assert HOSTILE[3] in tokens
    assert opened.execute_script("return document.querySelectorAll('#panel script, #panel img').length") == 0
    opened.execute_script("examples.close()")
    point_at(opened, "cell-0-z-templates", 0, 0)
    eventually(opened, TIP, f"L9H9, T0{HOSTILE[0]}")
    assert opened.execute_script("return window.hurt === undefined")


def test_a_map_can_be_read_with_the_keyboard(opened: Chrome) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    chart = opened.find_element(By.ID, "cell-0-z-answer")
    opened.execute_script("arguments[0].focus()", chart)
    chart.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    assert opened.execute_script("return document.querySelector('#tip b').textContent") == "L1H1"
    assert opened.execute_script("return document.getElementById('tip').getAttribute('aria-live')") == "polite"
    chart.send_keys(Keys.ENTER)
    assert opened.execute_script(PANEL).startswith("L1H1")
    opened.find_element(By.ID, "panel-title").send_keys(Keys.ESCAPE)
    assert opened.execute_script("return document.activeElement.id") == "cell-0-z-answer"


def test_choosing_another_head_shows_its_pairs(opened: Chrome) -> None:
    shown = "return document.querySelector('.shown').textContent"
    before = opened.execute_script(shown)
    opened.execute_script("document.querySelectorAll('.chip')[1].click()")
    assert opened.execute_script(shown) != before
    assert opened.execute_script("return document.querySelectorAll('.chip')[1].getAttribute('aria-pressed')") == "true"


def test_clicking_a_column_sorts_the_table(opened: Chrome) -> None:
    rows = "document.querySelector('table.ranking').tBodies[0].rows"
    names = f"return [...{rows}].map((row) => row.cells[0].textContent.trim())"
    before = opened.execute_script(names)
    opened.execute_script("document.querySelector('table.ranking th button').click()")
    down = opened.execute_script(names)
    opened.execute_script("document.querySelector('table.ranking th button').click()")
    up = opened.execute_script(names)

    def by_layer(name: str) -> tuple[int, ...]:
        return tuple(map(int, name.removeprefix("L").split("H")))

    assert up == sorted(before, key=by_layer)
    assert down == up[::-1]
    assert before not in (up, down)


def test_everything_has_a_name_for_a_screen_reader(opened: Chrome) -> None:
    nameless = opened.execute_script(
        "return [...document.querySelectorAll('button, select, a, .chart, [role=region], [role=group]')]"
        ".filter((e) => !e.textContent.trim() && !e.getAttribute('aria-label') && !e.getAttribute('aria-labelledby')"
        " && !e.labels?.length).map((e) => e.outerHTML.slice(0, 200))"
    )
    assert nameless == []
    broken = opened.execute_script(
        "return [...document.querySelectorAll('[aria-labelledby], [aria-describedby]')].flatMap((e) =>"
        " [e.getAttribute('aria-labelledby'), e.getAttribute('aria-describedby')])"
        ".filter((id) => id && !document.getElementById(id))"
    )
    assert broken == []
    ids = opened.execute_script("return [...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert opened.execute_script("return [...document.querySelectorAll('h1')].length") == 1
    ours = [name for name in ids if name.startswith(("cell-", "sweep", "difference-"))]
    assert len(ours) == len(set(ours))


def test_colours_follow_the_reader_and_stay_diverging(opened: Chrome) -> None:
    middle = "return document.getElementById('cell-0-z-answer').layout.coloraxis.colorscale[5][1]"
    for scheme, colour in (("dark", "rgb(33,38,45)"), ("light", "rgb(247,247,247)")):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        eventually(opened, middle, colour)


def test_a_narrow_screen_needs_no_sideways_scrolling(opened: Chrome) -> None:
    for width in (1280, 390):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        eventually(opened, f"return document.documentElement.scrollWidth <= {width}", wanted=True)
    right = "chart.querySelector('svg.main-svg').getBoundingClientRect().right"
    eventually(opened, f"return figures.charts.filter((chart) => {right} > 391).length", 0)


def test_printing_draws_everything_in_light_colours(opened: Chrome) -> None:
    opened.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert opened.execute_script("return figures.charts.filter((chart) => !chart.dataset.drawn).length") == 0
    assert opened.execute_script("return document.querySelectorAll('details:not([open])').length") == 0
    opened.execute_script("dispatchEvent(new Event('afterprint'))")
    assert_no_error(opened)


def assert_no_error(browser: Chrome) -> None:
    assert [entry for entry in browser.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}] == []
