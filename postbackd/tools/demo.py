# SPDX-License-Identifier: MIT
"""The demo: a daemon and a sink on free ports, the sample request, what arrived and what was logged.

Run by `make demo` as `python -m postbackd.tools.demo`. Everything it starts and writes is gone afterwards; exit code
0 says that both postbacks arrived as they should.
"""

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

BOUND_S = 60
SAMPLE_DATA = [{"key": "Azureus", "value": "Dendrobates"}, {"key": "Phyllobates", "value": "Terribilis"}]
EXPECTED = ["/data?key=Azureus&value=Dendrobates&foo=", "/data?key=Phyllobates&value=Terribilis&foo="]


def main() -> int:
    """Show it; 0 when it went well."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pbdemo")))
        sink_port, port, queue_port = _free_port(), _free_port(), _free_port()
        record, log, output = folder / "received.jsonl", folder / "deliveries.jsonl", folder / "output"
        sink = ["sink", "--quiet", "--port", str(sink_port), "--record", str(record)]
        settings = [
            f"data_dir={folder}/var",
            f"log.path={log}",
            f"ingest.port={port}",
            f"queue.port={queue_port}",
            "ingest.workers=1",
            "delivery.workers=1",
            'security.allow_networks=["127.0.0.0/8"]',
        ]
        stack.enter_context(_process(sink, output))
        daemon = stack.enter_context(
            _process(["run", "--roles", "ingest,deliver", *(p for s in settings for p in ("--set", s))], output)
        )
        url = f"http://127.0.0.1:{port}/ingest.php"
        if not _wait(lambda: daemon.poll() is not None or _answers(f"http://127.0.0.1:{port}/ready")):
            return _fail("the daemon did not become ready", output)
        if daemon.poll() is not None:
            return _fail("the daemon did not start", output)
        template = f"http://127.0.0.1:{sink_port}/data?key={{key}}&value={{value}}&foo={{bar}}"
        request = {"endpoint": {"method": "GET", "url": template}, "data": SAMPLE_DATA}
        print(f"POST {url}\n{json.dumps(request, indent=2)}\n")
        answer = _post(url, json.dumps(request).encode())
        print(f"202 {answer}\n")
        if not _wait(lambda: len(_lines(log)) == 2 and len(_lines(record)) == 2):
            return _fail("the two postbacks did not arrive", output)
        received = [json.loads(line) for line in _lines(record)]
        print("Two requests arrived:")
        print("\n".join(f"  {request['method']} {request['url']}" for request in received))
        print("\nTwo lines stand in the delivery log:")
        print("\n".join(_lines(log)))
        return 0 if sorted(request["url"] for request in received) == EXPECTED else _fail("not as expected", output)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _process(arguments: list[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    with output.open("ab") as file:
        process = subprocess.Popen([sys.executable, "-m", "postbackd.cli", *arguments], stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(BOUND_S)


def _wait(condition: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + BOUND_S
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def _post(url: str, body: bytes) -> str:
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        answer: bytes = response.read()
    return answer.decode()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _fail(reason: str, output: Path) -> int:
    print(f"demo: {reason}; this is what the processes said:\n{output.read_text()}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
