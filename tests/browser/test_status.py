"""The tab "Status": models, replicas and figures, and what it says if some can't be known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from raylens.core.keys import hash_key
from tests.browser.conftest import opened
from tests.browser.scripted_status import replicas
from tests.browser.site import Site, serving

pytestmark = pytest.mark.browser

POLL_MS = 5000
SET_HIDDEN = """(isHidden) => {
  Object.defineProperty(document, 'hidden', { value: isHidden, configurable: true })
  document.dispatchEvent(new Event('visibilitychange'))
}"""


@pytest.fixture
def status(page: Page) -> Page:
    open_status(page)
    return page


def open_status(page: Page) -> None:
    page.get_by_role("tab", name="Status").click()


def card(page: Page, title: str) -> Locator:
    return page.get_by_role("region", name=title, exact=True)


def tile(part: Locator, name: str) -> Locator:
    return part.get_by_role("listitem").filter(has=part.page.get_by_text(name, exact=True))


def set_hidden(page: Page, is_hidden: bool) -> None:
    page.evaluate(SET_HIDDEN, is_hidden)


def test_the_newest_figures_are_shown(status: Page) -> None:
    server = card(status, "Server")
    expect(tile(server, "Requests")).to_contain_text("1,080 in total")
    expect(tile(server, "Errors")).to_contain_text("5 errors, 5 refused")
    expect(tile(server, "Latency")).to_contain_text("361 ms")
    expect(tile(server, "Requests in flight").locator(".value")).to_contain_text("6")
    model = card(status, "moondream")
    expect(model).to_contain_text("Loaded")
    expect(model).to_contain_text("1 of 1 running")
    expect(model).to_contain_text("1 CPU, 0.25 GPU")
    expect(tile(model, "Picture cache hits")).to_contain_text("48.3%")
    expect(tile(model, "Answers running")).to_contain_text("up to 8 at once")
    jobs = card(status, "Jobs")
    expect(tile(jobs, "Failed")).to_contain_text("3")
    expect(tile(jobs, "Ended")).to_contain_text("178 succeeded, 0 failed")
    row = card(status, "Deployments").get_by_role("row", name="Preprocessor")
    expect(row).to_contain_text("2 of 2 running")


@pytest.mark.parametrize("width", [360, 390, 600, 768, 820, 1280, 1440])
def test_no_figure_stands_alone_beside_an_empty_place(status: Page, width: int) -> None:
    status.set_viewport_size({"width": width, "height": 900})
    # Of fewer figures, too: those of which nothing is known are left out.
    alone = (
        card(status, "moondream")
        .locator(".tiles")
        .evaluate("""(list) => {
      const copy = list.cloneNode(true)
      list.replaceWith(copy)
      const alone = []
      for (; copy.children.length > 1; copy.lastChild.remove()) {
        const last = copy.lastElementChild
        const isFirst = last.offsetTop > last.previousElementSibling.offsetTop
        if (isFirst && last.offsetWidth < copy.offsetWidth) alone.push(copy.children.length)
      }
      copy.replaceWith(list)
      return alone
    }""")
    )
    assert alone == []


def test_a_plot_is_an_image_that_says_what_it_shows(status: Page) -> None:
    plots = card(status, "Server").get_by_role("img")
    expect(plots).to_have_count(8)
    expect(plots.first).to_have_accessible_name("Requests: now 1/s, at most 2.4/s")
    line = plots.first.locator(".line").get_attribute("d") or ""
    assert line.count("L") == 88  # 90 moments, of which the first only begins the counts
    assert "NaN" not in line


def test_the_lines_of_a_plot_are_named_in_their_colors(status: Page) -> None:
    latency = tile(card(status, "Server"), "Latency")
    names = latency.locator(".legend")
    expect(names).to_have_text(["Median", "95% within 976 ms"])
    lines = latency.locator(".line").evaluate_all(
        "(lines) => lines.map((line) => getComputedStyle(line).stroke)"
    )
    colors = names.evaluate_all(
        "(names) => names.map((name) => getComputedStyle(name, '::before').backgroundColor)"
    )
    assert colors == lines
    assert len(set(colors)) == 2


def test_a_gap_is_no_line(page: Page, site: Site) -> None:
    moments = site.status.moments
    for i in (40, 41, 60):
        moments[i] = replace(moments[i], gauges={})
    open_status(page)
    plot = tile(card(page, "Server"), "Requests in flight").get_by_role("img")
    path = plot.locator(".line").get_attribute("d") or ""
    assert (path.count("M"), path.count("L")) == (3, 86 - 3)


@pytest.mark.parametrize(
    ("starting", "texts"), [(0, ["Not loaded"]), (1, ["Loading…", "1 starting for 12 s"])]
)
def test_a_model_that_is_missing_says_why(
    page: Page, site: Site, starting: int, texts: list[str]
) -> None:
    site.service.loaded = frozenset({"moondream"})
    reason = "OSError: loading <b>org/SmolVLM</b> failed"
    assert site.status.states is not None
    site.status.states["smolvlm"] = replicas(
        0, starting=starting, starting_s=12.0, message=reason, status="UNHEALTHY"
    )
    open_status(page)
    model = card(page, "smolvlm")
    for text in (*texts, reason):
        expect(model).to_contain_text(text)
    expect(model.get_by_role("img")).to_have_count(0)


def test_nodes_that_do_not_answer_are_told(page: Page, site: Site) -> None:
    moments = site.status.moments
    moments[-1] = replace(moments[-1], nodes=3, answering=1)
    open_status(page)
    expect(page.get_by_text("The metrics of 2 of 3 nodes can’t be read")).to_be_visible()
    expect(card(page, "Server")).to_be_visible()


def test_without_figures_the_models_are_shown(page: Page, site: Site) -> None:
    site.status.has_history = False
    site.status.states = None
    open_status(page)
    expect(page.get_by_text("can’t be read at the moment")).to_be_visible()
    expect(card(page, "moondream")).to_contain_text("Loaded")
    expect(card(page, "Deployments")).to_have_count(0)


def test_right_after_the_start_it_says_when_figures_come(page: Page, site: Site) -> None:
    site.status.moments = site.status.moments[:1]
    open_status(page)
    expect(page.get_by_text("The first figures appear within half a minute.")).to_be_visible()
    expect(page.get_by_role("img", name="Requests")).to_have_count(0)


def test_the_ray_dashboard_is_linked_on_its_own_machine(status: Page, site: Site) -> None:
    links = status.get_by_role("navigation", name="More")
    expect(links.get_by_role("link", name="Ray dashboard")).to_have_attribute(
        "href", "http://127.0.0.1:8265"
    )
    expect(links.get_by_role("link", name="API description")).to_have_attribute(
        "href", f"{site.url}docs"
    )
    expect(links.get_by_role("link", name="Grafana")).to_have_count(0)


def test_figures_are_renewed_while_the_page_is_visible_and_only_then(
    page: Page, site: Site
) -> None:
    page.clock.install()
    page.reload()
    open_status(page)
    span = page.locator(".about", has_text="minutes.")
    expect(span).to_contain_text("Last 15 minutes")
    site.status.moments = site.status.moments[:45]
    page.clock.fast_forward(POLL_MS)
    expect(span).to_contain_text("Last 7 minutes")
    set_hidden(page, True)
    asked = site.status.asked
    page.clock.fast_forward(10 * POLL_MS)
    site.status.moments = site.status.moments[:20]
    set_hidden(page, False)
    expect(span).to_contain_text("Last 3 minutes")
    assert site.status.asked == asked + 1


def test_another_tab_asks_for_no_figures(page: Page, site: Site) -> None:
    page.clock.install()
    page.reload()
    open_status(page)
    expect(card(page, "Server")).to_be_visible()
    page.get_by_role("tab", name="Try").click()
    asked = site.status.asked
    with page.expect_request("**/health"):
        page.clock.fast_forward(10 * POLL_MS)
    assert site.status.asked == asked


def test_a_server_that_is_away_is_told_and_the_last_figures_stay(
    page: Page,
) -> None:
    page.clock.install()
    page.reload()
    open_status(page)
    expect(card(page, "Server")).to_be_visible()
    page.route("**/api/v1/status", lambda route: route.abort())
    page.clock.fast_forward(POLL_MS)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The server does not answer")
    expect(alert).to_contain_text("These figures are from")
    expect(tile(card(page, "Server"), "Requests")).to_contain_text("1,080 in total")
    page.unroute("**/api/v1/status")
    page.clock.fast_forward(POLL_MS)
    expect(alert).to_have_count(0)


def test_a_key_that_is_missing_can_be_entered(browser: Browser) -> None:
    auth = {"keys": [{"name": "ann", "hash": hash_key("rl-ann")}]}
    with serving(auth=auth) as site:
        for page in opened(browser, site.url):
            open_status(page)
            page.get_by_role("button", name="Enter key").click()
            page.get_by_label("API key").fill("rl-ann")
            page.get_by_role("button", name="Use key").click()
            expect(card(page, "Server")).to_be_visible()
