# SPDX-License-Identifier: MIT
"""etc/prometheus and etc/grafana: accepted by promtool, tested, and about metrics that a running daemon has."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.daemon import http as ask
from tests.support.daemon import running_daemon, wait_until

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "etc" / "prometheus" / "alerts.yml"
ALERT_TESTS = ROOT / "tests" / "prometheus" / "alerts.test.yml"
DASHBOARD = ROOT / "etc" / "grafana" / "dashboard.json"
RUNBOOK = ROOT / "docs" / "runbook.md"


def promtool(*arguments: object) -> str:
    program = shutil.which("promtool")
    assert program, "promtool is missing: bash scripts/need.sh promtool:prometheus"
    ended = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return list(json.loads(DASHBOARD.read_text())["panels"])


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, set[str]]]:
    """Sample names of a running daemon's /metrics, each with the labels it has."""
    with running_daemon(tmp_path_factory.mktemp("alerts")) as daemon:
        text = ""

        def queue_is_seen() -> bool:
            nonlocal text
            text = str(ask("GET", f"{daemon.admin_url}/metrics")[1])
            return "postbackd_queue_up 1.0" in text

        wait_until(queue_is_seen, "the queue is seen")
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(postbackd_\w+)(?:\{(.*)\})? ", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    yield found


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\bpostbackd_\w+", expression))


def test_promtool_accepts_the_rules() -> None:
    assert f"{len(alerts())} rules found" in promtool("check", "rules", ALERTS)


def test_promtool_runs_the_unit_tests() -> None:
    assert "SUCCESS" in promtool("test", "rules", ALERT_TESTS)


def test_every_alert_is_tested_both_ways() -> None:
    cases = [case for test in yaml.safe_load(ALERT_TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    fires = {case["alertname"] for case in cases if case.get("exp_alerts")}
    stays_silent = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    names = {rule["alert"] for rule in alerts()}
    assert fires == names
    assert names - stays_silent <= {"PostbackdBacklogVeryOld"} - stays_silent


def test_every_alert_leads_to_a_section_of_the_runbook() -> None:
    headings = re.findall(r"^## (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for rule in alerts():
        path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert (ROOT / path) == RUNBOOK and anchor in anchors, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning") and rule["annotations"]["summary"]


def test_alerts_use_only_metrics_and_labels_that_exist(samples: dict[str, set[str]]) -> None:
    for rule in alerts():
        check_expression(rule["expr"], samples)


def test_dashboard_uses_only_metrics_and_labels_that_exist(samples: dict[str, set[str]]) -> None:
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    assert len(expressions) > 20
    for expression in expressions:
        check_expression(expression, samples)
    used = set().union(*map(names_in, expressions))
    bases = {re.sub(r"_(bucket|count|sum)$", "", name) for name in samples}
    assert bases - {re.sub(r"_bucket$", "", name) for name in used} == set(), "metrics that no panel shows"


def check_expression(expression: str, samples: dict[str, set[str]]) -> None:
    for name, labels in re.findall(r"\b(postbackd_\w+)(?:\{([^}]*)\})?", expression):
        assert name in samples, f"{name} in {expression}"
        for label in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)"', labels):
            assert label in samples[name] | {"instance", "job"}, f"{label} of {name} in {expression}"


def test_dashboard_is_laid_out_without_overlaps() -> None:
    cells: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        mine = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & mine, panel["title"]
        cells |= mine
