# SPDX-License-Identifier: MIT
"""The dashboard in a real Chromium, with a real daemon behind it.

Every test ends with the same look back: nothing was asked from elsewhere, nothing broke the Content-Security-Policy,
nothing was complained of on the console.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from bench.failover_parts.cluster import cluster_group
from tests.support.daemon import STOP_BOUND_S, Daemon, running_daemon, running_sink, wait_until
from tests.support.load import Load
from tests.support.programs import need
from tests.support.servers import Server

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
BOUND_MS = STOP_BOUND_S * 1000
DESK, PHONE = (1280, 900), (390, 844)
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
"""
FEW = 15  # failures that open no breaker
GONE = "ERR_CONNECTION_|ERR_EMPTY_RESPONSE"  # what Chromium says of a daemon that has ended
CONTROL = re.compile(r"^\s*- '?(button|checkbox|combobox|radio|searchbox|textbox)\b(.*)$", re.MULTILINE)
HOSTILE = "<img src=x onerror='document.title=1'>"

expect.set_options(timeout=BOUND_MS)
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    need("chromium", "chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts a test's own daemon. It outlives the page, which would complain of a daemon that is gone."""
    with ExitStack() as stack:
        yield lambda *settings, **options: stack.enter_context(running_daemon(tmp_path, settings, **options))


@pytest.fixture
def open_page(browser: Browser, start: object) -> Iterator[Open]:
    """Opens a daemon's dashboard; `complaints` are those that a test brings about itself (a stopped daemon)."""
    opened: list[tuple[Page, str, list[str], list[str], str]] = []

    def open_page(daemon: Daemon, size: tuple[int, int] = DESK, complaints: str = "^$", scheme: str = "light") -> Page:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)  # type: ignore[arg-type]
        context.add_init_script(WATCH)
        page = context.new_page()
        asked: list[str] = []
        said: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        opened.append((page, daemon.admin_url, asked, said, complaints))
        page.goto(daemon.admin_url)
        return page

    yield open_page
    for page, address, asked, said, complaints in opened:
        assert page.evaluate("window.violations") == []
        assert [url for url in asked if not url.startswith((address + "/", "data:"))] == []
        assert [text for text in said if not re.search(complaints, text)] == []
        page.context.close()


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, str, str]]:
    """A daemon under load: a host that is well, one that fails; their names."""
    folder = tmp_path_factory.mktemp("dashboard")
    with (
        running_sink(folder / "well") as well,
        running_sink(folder / "failing", "--status", "503") as failing,
        running_daemon(folder / "daemon") as daemon,
    ):
        load = Load(daemon, well, threads=1)
        try:
            url = f"{failing.url}/{HOSTILE.replace(' ', '%20')}?n={{n}}"
            endpoint = {"method": "GET", "url": url, "retry": {"max_attempts": 1}}
            assert daemon.post({"endpoint": endpoint, "data": [{"n": n} for n in range(FEW)]})[0] == 202
            wait_until(lambda: daemon.stats()["totals"]["dead"] >= FEW, "all of them are given up")
            wait_until(lambda: len(daemon.stats()["hosts"]) == 2, "both hosts are seen")
            yield daemon, f"127.0.0.1:{well.port}", f"127.0.0.1:{failing.port}"
        finally:
            load.stop()


def newest_failure(page: Page) -> Locator:
    """The row that is the first now: others may come before it meanwhile."""
    key = page.locator("#failures tbody").first.get_attribute("data-key")
    return page.locator(f'#failures tbody[data-key="{key}"]')


def host_row(page: Page, host: str) -> Locator:
    return page.locator(f'#hosts tbody[data-key="{host}"]')


def test_what_is_the_matter_is_said_first(busy: tuple[Daemon, str, str], open_page: Open) -> None:
    daemon, well, failing = busy
    page = open_page(daemon)
    expect(page.locator("#state-text")).to_have_text("ready")
    expect(page.locator("#tiles .tile", has_text="Delivered").locator(".tile-value")).to_have_text(
        re.compile(r"^[1-9]")
    )
    expect(host_row(page, well)).to_contain_text("well")
    expect(page.locator("#dead")).to_contain_text("attempts exhausted")
    expect(page.locator("#classes")).to_contain_text("http 5xx")
    expect(page.locator("#workers")).to_contain_text("deliver 0")
    expect(page.locator("#cluster tbody")).to_have_count(1)
    expect(page.locator("#announce")).not_to_be_empty()
    endpoint = {"method": "GET", "url": f"http://{failing}/", "retry": {"max_attempts": 1}}
    assert daemon.post({"endpoint": endpoint, "data": [{}] * 40})[0] == 202
    finding = page.locator("#verdict li", has_text=failing)
    expect(finding).to_contain_text("their side")
    expect(finding).to_contain_text(re.compile(r"Since \d\d:\d\d \("))
    finding.get_by_role("button").click()
    expect(page.locator("#failures-title")).to_be_focused()
    expect(page.locator("#failures tbody").first).to_contain_text(failing)


def test_failures_tell_their_answers_as_text(busy: tuple[Daemon, str, str], open_page: Open) -> None:
    daemon, _, failing = busy
    page = open_page(daemon)
    failures = page.locator("#failures tbody")
    expect(failures).to_have_count(10)
    page.get_by_role("button", name=re.compile("^Show all")).click()
    assert failures.count() > 10
    first = newest_failure(page)
    opener = first.get_by_role("button")
    expect(opener).to_have_attribute("aria-expanded", "false")
    opener.click()
    expect(opener).to_have_attribute("aria-expanded", "true")
    detail = first.locator(".detail")
    expect(detail).to_contain_text(re.compile(r"postbackd explain [0-9a-f]{16} --set data_dir="))
    expect(detail).to_contain_text(f"GET http://{failing}/")
    assert page.locator("#failures img").count() == 0, "what others wrote is text"
    opener.press("Enter")
    expect(detail).to_have_count(0)


def test_hosts_open_sort_and_filter(busy: tuple[Daemon, str, str], open_page: Open) -> None:
    daemon, well, failing = busy
    page = open_page(daemon)
    rows = page.locator("#hosts tbody")
    expect(rows).to_have_count(2)
    host_row(page, failing).get_by_role("button").first.click()
    expect(host_row(page, failing).locator(".detail")).to_contain_text(f"postbackd tail --failed --host {failing}")
    head = page.get_by_role("columnheader", name="Tries/s")
    head.get_by_role("button").click()
    expect(head).to_have_attribute("aria-sort", "descending")
    expect(rows.first).to_have_attribute("data-key", well)
    head.get_by_role("button").click()
    expect(head).to_have_attribute("aria-sort", "ascending")
    expect(rows.last).to_have_attribute("data-key", well)
    page.get_by_role("searchbox").fill(well)
    expect(rows).to_have_count(1)
    page.get_by_role("searchbox").fill("nowhere")
    expect(rows).to_have_count(0)
    expect(page.get_by_text("No host's name contains “nowhere”.")).to_be_visible()


def test_range_is_asked_for_and_drawn(busy: tuple[Daemon, str, str], open_page: Open) -> None:
    daemon, _, _ = busy
    page = open_page(daemon)
    expect(page.locator(".chart").first.locator("path.line")).to_have_count(2)
    for value, label in (("1h", "1 h"), ("6h", "6 h"), ("15m", "15 min")):
        with page.expect_response(re.compile(rf"/history\?range={value}$")) as answer:
            page.get_by_text(label, exact=True).click()
        assert answer.value.status == 200
        expect(page.locator(f'#ranges input[value="{value}"]')).to_be_checked()


def test_charts_give_exact_figures_to_pointer_keys_and_readers(busy: tuple[Daemon, str, str], open_page: Open) -> None:
    daemon, _, _ = busy
    page = open_page(daemon)
    chart = page.locator(".chart").first
    expect(chart.locator("path.line-0")).to_have_attribute("d", re.compile("L"))
    field = chart.locator(".plot-field")
    box = field.bounding_box()
    assert box
    field.hover(position={"x": box["width"] - 14, "y": 60})
    expect(chart.locator(".tip")).to_have_text(re.compile(r"^\d\d:\d\d:\d\daccepted [\d.,]+delivered [\d.,]+$"))
    expect(page.locator(".chart").nth(3).locator(".cursor")).to_have_count(1)
    page.mouse.move(0, 0)
    expect(chart.locator(".tip")).to_be_hidden()
    field.focus()
    field.press("ArrowLeft")
    expect(chart.locator("[role=status]")).to_have_text(re.compile(r"^\d\d:\d\d:\d\d: accepted .*, delivered "))
    said = chart.locator("[role=status]").inner_text()
    field.press("ArrowLeft")
    expect(chart.locator("[role=status]")).not_to_have_text(said)
    field.press("Escape")
    expect(chart.locator(".tip")).to_be_hidden()
    chart.locator("summary").click()
    expect(chart.locator("td").first).to_have_text(re.compile(r"^[\d.,]+$"))


def test_keyboard_alone_reaches_everything(busy: tuple[Daemon, str, str], open_page: Open) -> None:
    daemon, _, _ = busy
    page = open_page(daemon)
    expect(page.locator("#hosts tbody")).to_have_count(2)
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the figures")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        where = page.evaluate("document.activeElement.closest('section, header')?.getAttribute('aria-labelledby')")
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or where is None, where
        reached.add(where)
    assert {"history-title", "hosts-title", "failures-title"} <= reached


def test_every_control_has_a_name_and_every_table_its_semantics(busy: tuple[Daemon, str, str], open_page: Open) -> None:
    daemon, _, _ = busy
    for size in (DESK, PHONE):
        page = open_page(daemon, size)
        expect(page.locator("#hosts tbody")).to_have_count(2)
        for role in ("banner", "main", "contentinfo"):
            expect(page.get_by_role(role)).to_have_count(1)  # type: ignore[arg-type]
        for name in ("Hosts", "Last failures", "Workers", "Machines"):
            table = page.get_by_role("table", name=re.compile(name))
            expect(table).to_have_count(1)
            assert table.get_by_role("rowheader").count() >= 1
            assert table.get_by_role("cell").count() >= 1
        # In one look: what the page next hears of the daemon may take one away.
        controls = CONTROL.findall(page.locator("body").aria_snapshot())
        assert {"button", "radio", "searchbox"} <= {role for role, _ in controls}
        assert [(role, rest) for role, rest in controls if not re.match(r' "[^"]+"', rest)] == []


def test_theme_follows_the_system_and_is_kept(busy: tuple[Daemon, str, str], open_page: Open) -> None:
    daemon, _, _ = busy
    page = open_page(daemon, scheme="dark")
    root = page.locator("html")
    expect(root).to_have_attribute("data-theme", "dark")
    page.emulate_media(color_scheme="light")
    expect(root).to_have_attribute("data-theme", "light")
    button = page.get_by_role("button", name="Dark theme")
    expect(button).to_have_attribute("aria-pressed", "false")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    page.reload()
    expect(root).to_have_attribute("data-theme", "dark")


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_page_fits_its_screen(busy: tuple[Daemon, str, str], open_page: Open, size: tuple[int, int]) -> None:
    daemon, _, failing = busy
    page = open_page(daemon, size)
    host_row(page, failing).get_by_role("button").first.click()
    page.get_by_role("button", name=re.compile("^Show all")).click()
    newest_failure(page).get_by_role("button").click()
    expect(page.locator(".detail")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_empty_daemon_says_so(start: Callable[..., Daemon], open_page: Open) -> None:
    daemon = start()
    page = open_page(daemon)
    expect(page.locator("#verdict")).to_contain_text("Nothing was posted yet")
    expect(page.get_by_text("No host was tried yet.")).to_be_visible()
    expect(page.get_by_text("No failure was seen.")).to_be_visible()
    expect(page.get_by_text("No traffic in this time")).to_be_visible()


def test_token_is_asked_for_and_kept_in_the_tab_alone(start: Callable[..., Daemon], open_page: Open) -> None:
    daemon = start("admin.token=opensesame")
    page = open_page(daemon, complaints="40[13]")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    expect(page.get_by_label("Token", exact=True)).to_be_focused()
    page.get_by_label("Token", exact=True).fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("The daemon does not know this token.")
    page.get_by_label("Token", exact=True).fill("opensesame")
    page.get_by_role("button", name="Open").click()
    expect(page.locator("#state-text")).to_have_text("ready")
    expect(dialog).to_be_hidden()
    page.reload()
    expect(page.locator("#state-text")).to_have_text("ready")
    expect(dialog).to_be_hidden()
    kept = page.evaluate("[JSON.stringify({...localStorage}), document.cookie, location.href]")
    assert "opensesame" not in json.dumps(kept)


def test_stopped_daemon_is_told_and_comes_back_by_itself(start: Callable[..., Daemon], open_page: Open) -> None:
    daemon = start()
    page = open_page(daemon, complaints=GONE)
    expect(page.locator("#state-text")).to_have_text("ready")
    daemon.stop()
    expect(page.locator("#state-text")).to_have_text("no answer")
    expect(page.locator("#verdict")).to_contain_text("The daemon does not answer")
    expect(page.locator("body")).to_have_attribute("data-state", "away")
    expect(page.locator("#fresh")).to_have_text(re.compile("^figures are .* old$"))
    daemon.start()
    expect(page.locator("#state-text")).to_have_text("ready")
    expect(page.locator("body")).to_have_attribute("data-state", "live")


def test_redis_away_is_ours_and_the_spool_is_shown(start: Callable[..., Daemon], open_page: Open) -> None:
    server = Server()
    try:
        daemon = start(f"queue.url={server.url}")
        page = open_page(daemon)
        expect(page.locator("#state-text")).to_have_text("ready")
        server.kill()
        assert daemon.post({"endpoint": {"method": "GET", "url": "http://127.0.0.1:1/"}, "data": [{}]})[0] == 202
        finding = page.locator("#verdict li", has_text="Redis is away")
        expect(finding).to_contain_text("our side")
        expect(finding).to_contain_text(re.compile(r"\d B of 1.0 GiB"))
        expect(page.locator("#state-text")).to_have_text("not ready")
        expect(page.locator("#tiles .tile", has_text="Ready").locator(".tile-note")).to_have_text("Redis is away")
    finally:
        server.destroy()


def test_shard_of_a_cluster_that_is_away_is_told(start: Callable[..., Daemon], open_page: Open) -> None:
    with cluster_group(3, replicas=False) as group:
        daemon = start(f"queue.url={group.url}", "queue.shards=3")
        page = open_page(daemon, complaints=GONE)
        expect(page.locator("#state-text")).to_have_text("ready")
        group.owner(1).fail("kill")
        finding = page.locator("#verdict li", has_text="1 shard is away")
        expect(finding).to_contain_text("our side")
        expect(finding).to_contain_text("requests go to the others")
        expect(page.locator("#state-text")).to_have_text("ready")
        assert daemon.stop() == 0


def test_overload_is_told(start: Callable[..., Daemon], open_page: Open) -> None:
    daemon = start(roles="ingest,admin")
    page = open_page(daemon)
    assert daemon.post({"endpoint": {"method": "GET", "url": "http://127.0.0.1:1/"}, "data": [{}] * 1000})[0] == 202
    finding = page.locator("#verdict li", has_text="Postbacks wait and none is tried")
    expect(finding).to_contain_text("1,000 are ready and wait, the oldest for ")
