# SPDX-License-Identifier: MIT
"""Reloads under load: nobody refused, nothing that was read unanswered, nothing lost or doubled."""

import json
import signal
from pathlib import Path

from tests.support.daemon import Daemon, http, running_daemon, running_sink, wait_until
from tests.support.steady_load import SteadyLoad, assert_nothing_went_wrong

BOUND_S = 120


def reload(daemon: Daemon, event: str = "reload_done") -> None:
    before = daemon.output.read_text().count(f" {event} ")
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: daemon.output.read_text().count(f" {event} ") > before, event, BOUND_S)


def test_reloads_under_load_drop_no_request_and_no_postback(tmp_path: Path) -> None:
    config = tmp_path / "postbackd.toml"
    config.write_text("[delivery]\nper_host = 16\n")
    with (
        running_sink(tmp_path / "sink", "--latency", "0.02") as sink,
        running_daemon(tmp_path / "daemon", config=config) as daemon,
    ):
        before = daemon.children("ingest") + daemon.children("deliver")
        load = SteadyLoad(daemon.port, sink.url)
        load.wait_for_more()
        for per_host in (20, 24):
            config.write_text(f"[delivery]\nper_host = {per_host}\n")
            reload(daemon)
            load.wait_for_more()
        config.write_text("[delivery\n")
        reload(daemon, "reload_refused")
        load.wait_for_more()
        after = daemon.children("ingest") + daemon.children("deliver")
        assert len(after) == 3
        assert not set(before) & set(after)
        assert_nothing_went_wrong(load, sink)
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.output.read_text()


def test_slow_request_and_slow_transfer_outlive_the_reload(tmp_path: Path) -> None:
    with (
        running_sink(tmp_path / "sink", "--latency", "3") as sink,
        running_daemon(tmp_path / "daemon") as daemon,
    ):
        endpoint = {"method": "GET", "url": sink.url + "/hit?id={@id}&name={n}"}
        _, answer = daemon.post({"endpoint": endpoint, "data": [{"n": n} for n in range(20)]})
        wait_until(lambda: len(sink.received()) == 20, "transfers are in flight")
        reload(daemon)
        wait_until(lambda: len(daemon.delivered_ids()) == 20, "they end")
        assert sorted(daemon.delivered_ids()) == sorted(answer["ids"])
        assert len(sink.received()) == 20, "nothing was sent twice"


def test_token_is_rotated_by_a_reload(tmp_path: Path) -> None:
    config = tmp_path / "postbackd.toml"

    def accept(*tokens: str) -> None:
        config.write_text(f"[ingest]\ntokens = {json.dumps(list(tokens))}\n")

    old, new = "a:old-secret-of-this-test", "b:new-secret-of-this-test"
    accept(old)
    with running_sink(tmp_path / "sink") as sink, running_daemon(tmp_path / "daemon", config=config) as daemon:
        request = {"endpoint": {"method": "GET", "url": sink.url}, "data": {}}

        def post(token: str) -> int:
            headers = {"Content-Type": "application/json", "Authorization": "Bearer " + token.partition(":")[2]}
            return http("POST", daemon.url + "/ingest.php", json.dumps(request).encode(), headers)[0]

        assert (post(old), post(new)) == (202, 403)
        accept(old, new)
        reload(daemon)
        assert (post(old), post(new)) == (202, 202)
        accept(new)
        reload(daemon)
        assert (post(old), post(new)) == (403, 202)
        assert "secret-of-this-test" not in daemon.output.read_text()


def test_changed_limit_takes_effect_while_postbacks_are_delivered(tmp_path: Path) -> None:
    config = tmp_path / "postbackd.toml"
    config.write_text("[delivery]\ntimeout = 30\n")
    with (
        running_sink(tmp_path / "sink", "--latency", "2") as sink,
        running_daemon(tmp_path / "daemon", config=config) as daemon,
    ):
        request = {"endpoint": {"method": "GET", "url": sink.url}, "data": [{}]}
        [before] = daemon.post(request)[1]["ids"]
        wait_until(lambda: sink.received(), "it is on its way")
        config.write_text("[delivery]\ntimeout = 0.3\n")
        reload(daemon)
        [after] = daemon.post(request)[1]["ids"]
        wait_until(lambda: {before, after} <= {line["id"] for line in daemon.log()}, "both have ended", BOUND_S)
        # The first of each: the one that is tried again may have been already.
        outcomes = {line["id"]: (line["outcome"], line["error"]) for line in reversed(daemon.log())}
        assert outcomes == {before: ("delivered", None), after: ("retry", "timeout")}
