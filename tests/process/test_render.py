# SPDX-License-Identifier: MIT
"""`postbackd render`: shows what would be sent, lints, warns of misspelt keys; and says what ingest would say."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

from standardwebhooks.webhooks import Webhook

from tests.support.daemon import POSTBACKD

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()


def render(tmp_path: Path, request: object, *arguments: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "request.json"
    file.write_text(request if isinstance(request, str) else json.dumps(request))
    return subprocess.run([*POSTBACKD, "render", str(file), *arguments], capture_output=True, text=True, timeout=60)


def rendered(tmp_path: Path, request: object, *arguments: str) -> dict[str, Any]:
    return json.loads(render(tmp_path, request, "--json", *arguments).stdout)


SAMPLE = {
    "endpoint": {
        "method": "get",
        "url": "http://sample_domain_endpoint.com/data?key={key}&value={value}&foo={bar}",
        "headers": {"X-Key": "k {key|lower}", "X-Empty": ""},
    },
    "data": [{"key": "Azureus", "value": "D p", "valeu": 1}, {"key": "Phyllobates", "value": "T", "@": {"delay": 60}}],
}


def test_it_shows_what_each_item_would_send_and_warns_of_keys(tmp_path: Path) -> None:
    ended = render(tmp_path, SAMPLE)
    assert ended.returncode == 0
    first, second = ended.stdout.strip().split("\n\n")
    assert first.splitlines() == [
        "item 1 of 2",
        "GET http://sample_domain_endpoint.com/data?key=Azureus&value=D%20p&foo=",
        "X-Key: k azureus",
        "X-Empty:",
    ]
    assert "not before 20" in second and "key=Phyllobates&value=T&foo=" in second
    assert ended.stderr.splitlines() == [
        "warning  the key 'valeu' is used by no placeholder (1 of 2 items)",
        "warning  {bar} (placeholder 3) is filled by no key in 2 of 2 items",
    ]


def test_json_is_one_object(tmp_path: Path) -> None:
    found = rendered(tmp_path, SAMPLE)
    assert (found["accepted"], found["error"], len(found["items"]), len(found["warnings"])) == (True, None, 2, 2)
    assert found["items"][0]["headers"] == ["X-Key: k azureus", "X-Empty:"]


def test_bodies_are_shown_and_use_every_key(tmp_path: Path) -> None:
    for body, text in [("json", '{"b":1,"a":"x y"}'), ("form", "a=x%20y&b=1")]:
        request = {"endpoint": {"method": "POST", "url": "http://h/", "body": body}, "data": {"b": 1, "a": "x y"}}
        found = rendered(tmp_path, json.dumps(request, separators=(",", ":")))
        assert (found["items"][0]["body"], found["warnings"]) == (text, [])


def test_signature_is_shown_as_it_would_be(tmp_path: Path) -> None:
    request = {"endpoint": {"method": "POST", "url": "http://h/", "sign": "k"}, "data": {}}
    [item] = rendered(tmp_path, request, "--set", f'security.signing_keys={{k = "{SECRET}"}}')["items"]
    headers = dict(header.split(": ", 1) for header in item["headers"])
    assert headers["webhook-id"] == item["id"]
    Webhook(SECRET).verify(item["body"], headers)


def test_what_ingest_refuses_is_said_with_its_place(tmp_path: Path) -> None:
    request = {"endpoint": {"method": "GET", "url": "http://h/?k={k|lowre}"}, "data": [{}]}
    ended = render(tmp_path, request)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "422 invalid_template: endpoint.url: There is no modifier 'lowre'" in ended.stderr
    assert "(at character 16)" in ended.stderr
    error = rendered(tmp_path, request)["error"]
    assert (error["code"], error["path"]) == ("invalid_template", "endpoint.url")
    assert "malformed_json" in render(tmp_path, "{").stderr


def test_what_would_be_dead_at_once_is_said(tmp_path: Path) -> None:
    request = {"endpoint": {"method": "GET", "url": "http://h/{k}"}, "data": [{"k": ".."}, {"k": "x" * 9000}, {"k": 1}]}
    ended = render(tmp_path, request)
    assert ended.returncode == 1
    assert "render_error" in ended.stdout and "too_large" in ended.stdout and "GET http://h/1" in ended.stdout
    for host in ("2130706433", "[::ffff:10.0.0.1]:8080"):
        endpoint = {"method": "GET", "url": f"http://{host}/"}
        [item] = rendered(tmp_path, {"endpoint": endpoint, "data": {}})["items"]
        assert item["error"].startswith("blocked: "), host
    [item] = rendered(tmp_path, {"endpoint": {"method": "GET", "url": "http://[2606:4700::1]/"}, "data": {}})["items"]
    assert item["error"] is None


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    ended = subprocess.run([*POSTBACKD, "render", str(tmp_path / "no")], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1 and "cannot be read" in ended.stderr
