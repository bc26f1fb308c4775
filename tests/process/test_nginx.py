# SPDX-License-Identifier: MIT
"""etc/nginx.conf in front of the door, with a real nginx: nothing gets through that could be read in two ways."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import free_port, wait_until
from tests.support.door_server import DoorServer, get, request

REPOSITORY = Path(__file__).parents[2]
MAIN = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  {shipped}
}}
"""


def nginx_binary() -> str:
    if os.geteuid() == 0:
        subprocess.run(
            ["bash", "scripts/need.sh", "nginx:nginx-light"], cwd=REPOSITORY, check=True, capture_output=True
        )
    found = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if found is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    return found


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoorServer]:
    """The door; its `front` is the port of nginx."""
    folder = tmp_path_factory.mktemp("nginx")
    folder.chmod(0o755)  # nginx' worker is another user
    server = DoorServer(folder, {})
    server.front = free_port()
    shipped = (REPOSITORY / "etc" / "nginx.conf").read_text()
    assert shipped.count("listen 80;") == 1 and shipped.count("127.0.0.1:8080") == 1
    shipped = shipped.replace("listen 80;", f"listen 127.0.0.1:{server.front};")
    shipped = shipped.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}")
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder, shipped=shipped))
    command = [nginx_binary(), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    process = subprocess.Popen(command)
    try:
        wait_until(lambda: process.poll() is not None or _answers(server), "nginx and the door answer")
        assert process.poll() is None, (folder / "error.log").read_text()
        yield server
    finally:
        process.terminate()
        process.wait()
        server.destroy()


def _answers(server: DoorServer) -> bool:
    try:
        return server.send(request(path=b"/i"), port=server.front).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def test_request_goes_through_with_a_length_of_nginx(behind: DoorServer) -> None:
    for sent in (
        request(b"hello", path=b"/i"),
        b"POST /i HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        request(b"hello", b"Expect: 100-continue\r\n", path=b"/ingest.php"),
    ):
        assert behind.send(sent, port=behind.front).endswith(b"hello")


def test_pipelined_requests_are_answered_in_their_order(behind: DoorServer) -> None:
    with behind.connect(behind.front) as client:
        client.sendall(b"".join(request(b"<%d>" % number, path=b"/i") for number in range(20)))
        answers = b""
        while answers.count(b">") < 20:
            piece = client.recv(65536)
            assert piece, answers
            answers += piece
    places = [answers.index(b"\r\n\r\n<%d>" % number) for number in range(20)]
    assert places == sorted(places)


SMUGGLED = get(b"/smuggled")
POST = b"POST /i HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"
AMBIGUOUS = {
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED),
    "length and chunked": CHUNKED + b"Content-Length: 4\r\n\r\n0\r\n\r\n",
    "chunked and length": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked with a blank": POST + b"Content-Length: 5\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "an empty length": POST + b"Content-Length:\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED),
    "a chunk over 64 bits": CHUNKED + b"\r\n10000000000000000\r\n",
    "another coding": POST + b"Transfer-Encoding: xchunked\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_nothing_is_smuggled_through(behind: DoorServer, name: str) -> None:
    behind.send(AMBIGUOUS[name] + SMUGGLED, port=behind.front)
    assert behind.send(request(b"next", path=b"/i"), port=behind.front).endswith(b"next")
    assert "GET /smuggled" not in behind.handled()


def test_trailers_do_not_become_headers(behind: DoorServer) -> None:
    sent = CHUNKED + b"\r\n5\r\nhello\r\n0\r\nX-Shown: trailer\r\n\r\n"
    assert behind.send(sent).endswith(b"trailer")  # what bjoern does alone
    assert behind.send(sent, port=behind.front).endswith(b"hello")


def test_only_the_ingest_paths_are_open(behind: DoorServer) -> None:
    for path in (b"/health", b"/ready", b"/", b"/i/x", b"/metrics"):
        assert behind.send(get(path), port=behind.front).startswith(b"HTTP/1.1 404"), path
