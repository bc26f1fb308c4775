# SPDX-License-Identifier: MIT
"""Makes the pictures of docs/img: a real daemon under load, a partner that begins to fail, the dashboard and top.

    python -m tests.browser.screenshots --minutes 8

Needs root: the partners are sinks on port 80 of loopback addresses, and their names come from an /etc/hosts of the
daemon's own (a mount namespace). Half of the time is spent before `cb.adventure.example` begins to answer 503.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from rich.console import Console

from postbackd.settings_loader import load
from postbackd.tools.admin_client import AdminClient
from postbackd.tools.top import View
from tests.support.daemon import POSTBACKD, free_port, http, wait_until

IMAGES = Path(__file__).parents[2] / "docs" / "img"
FAILING = "cb.adventure.example"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
# name: (options of its sink, requests a second)
PARTNERS: dict[str, tuple[list[str], float]] = {
    "postback.fastnet.example": (["--latency", "0.004"], 40),
    "track.clickhouse-ads.example": (["--latency", "0.03"], 20),
    "s2s.attribution.example": (["--latency", "0.12"], 10),
    "api.slowpartner.example": (["--latency", "1.4", "--fail-rate", "0.04"], 6),
    FAILING: (["--latency", "0.06"], 12),
    "events.tinygames.example": (["--latency", "0.02"], 2),
}
ITEMS = 3
SVG_FORMAT = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">
<style>.{unique_id}-matrix {{ font: {char_height}px ui-monospace, "DejaVu Sans Mono", monospace;
line-height: {line_height}px; white-space: pre; }} {styles}</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect width="100%" height="100%"/></clipPath>{lines}</defs>
<rect width="100%" height="100%" rx="8" fill="#101418"/>{backgrounds}
<g class="{unique_id}-matrix" transform="translate(12 8)">{matrix}</g></svg>"""


def sink(address: str, options: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*POSTBACKD, "sink", "--quiet", "--host", address, "--port", "80", *options], stdout=subprocess.DEVNULL
    )


def post_all(url: str, stopping: threading.Event) -> None:
    """Requests to every partner at its rate."""
    due = dict.fromkeys(PARTNERS, time.monotonic())
    number = 0
    while not stopping.wait(0.005):
        for name, (_, per_s) in PARTNERS.items():
            if time.monotonic() < due[name]:
                continue
            due[name] += 1 / per_s
            number += 1
            endpoint = {"method": "GET", "url": f"http://{name}/cb?click={{click}}&payout={{payout}}"}
            data = [{"click": f"c{number}-{item}", "payout": 1.25} for item in range(ITEMS)]
            body = json.dumps({"endpoint": endpoint, "data": data}).encode()
            http("POST", f"{url}/ingest.php", body, {"Content-Type": "application/json"})


def pictures_of_dashboard(url: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)

        def page(width: int, height: int, scheme: str) -> Page:
            size = {"width": width, "height": height}
            made = browser.new_context(viewport=size, color_scheme=scheme).new_page()  # type: ignore[arg-type]
            made.goto(url)
            made.wait_for_selector("path.line-0")
            made.wait_for_timeout(4500)
            return made

        light = page(1280, 1180, "light")
        light.locator(".plot-field").first.hover(position={"x": 540, "y": 60})
        light.screenshot(path=IMAGES / "dashboard-light.png")
        dark = page(1280, 1180, "dark")
        dark.locator("#hosts .opener").first.click()
        dark.evaluate("document.getElementById('hosts-title').scrollIntoView()")
        dark.locator("#failures .opener").first.click()
        dark.wait_for_timeout(300)
        dark.screenshot(path=IMAGES / "dashboard-dark.png")
        page(390, 1500, "light").screenshot(path=IMAGES / "dashboard-phone.png")
        browser.close()


def picture_of_top(overrides: list[str]) -> None:
    client = AdminClient(load(None, {}, overrides))
    view = View(client.address)
    view.stats = client.get("/stats")
    view.points = client.get("/history?range=15m")["points"]
    console = Console(file=io.StringIO(), record=True, width=132, height=34, force_terminal=True, highlight=False)
    console.print(view.render(console.size, 0))
    (IMAGES / "top.svg").write_text(console.export_svg(title="postbackd top", code_format=SVG_FORMAT) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of docs/img.")
    parser.add_argument("--minutes", type=float, default=8)
    minutes = parser.parse_args().minutes
    IMAGES.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        addresses = {name: f"127.0.9.{number}" for number, name in enumerate(PARTNERS, 1)}
        hosts = folder / "hosts"
        hosts.write_text("".join(f"{ip} {name}\n" for name, ip in {"localhost": "127.0.0.1", **addresses}.items()))
        sinks = {name: sink(addresses[name], options) for name, (options, _) in PARTNERS.items()}
        stack.callback(lambda: [one.terminate() for one in sinks.values()])
        port = free_port()
        overrides = [
            f"data_dir={folder}/var",
            f"log.path={folder}/deliveries.jsonl",
            f"ingest.port={port}",
            f"queue.port={free_port()}",
            f"admin.port={free_port()}",
            "ingest.workers=2",
            "delivery.workers=2",
            'security.allow_networks=["127.0.0.0/8"]',
            "retry.schedule=[5,20,60]",
            "retry.max_attempts=3",
        ]
        arguments = [part for override in overrides for part in ("--set", override)]
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        daemon = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script, str(hosts), *POSTBACKD, "run", *arguments], stdout=sys.stderr
        )
        stack.callback(daemon.wait)
        stack.callback(daemon.terminate)
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _answers(url), "the daemon takes requests")
        stopping = threading.Event()
        poster = threading.Thread(target=post_all, args=(url, stopping))
        poster.start()
        stack.callback(poster.join)
        stack.callback(stopping.set)
        time.sleep(minutes * 30)
        sinks[FAILING].terminate()
        sinks[FAILING].wait()
        sinks[FAILING] = sink(addresses[FAILING], ["--latency", "0.3", "--status", "503"])
        time.sleep(minutes * 30)
        picture_of_top(overrides)
        pictures_of_dashboard(f"http://127.0.0.1:{load(None, {}, overrides).admin.port}")


def _answers(url: str) -> bool:
    try:
        return http("GET", f"{url}/ready")[0] == 200
    except OSError:
        return False


if __name__ == "__main__":
    main()
