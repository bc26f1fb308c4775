# SPDX-License-Identifier: MIT
"""Targets with certificates that are not to be trusted: a tls_error, and why in the words of docs/runbook.md."""

import contextlib
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from postbackd.codec import ErrorClass
from postbackd.delivery.curl_options import CurlOptions, Profile
from postbackd.delivery.egress import Policy
from postbackd.delivery.transfer import Result, Transfers
from postbackd.settings import Delivery
from tests.support.raw_server import raw_server, read_request

RUNBOOK = Path(__file__).parents[2] / "docs" / "runbook.md"
NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
LOCAL = "IP:127.0.0.1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    openssl(tmp_path, "req", "-x509", *NEW_KEY, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=ca")
    return tmp_path


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def certificate(folder: Path, names: str = LOCAL, days: int = 2, signer: tuple[str, ...] = ()) -> ssl.SSLContext:
    """A server's context with a certificate for these names; signed by our authority if no other is given."""
    (folder / "names").write_text(f"subjectAltName={names}\n")
    signer = signer or ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
    openssl(folder, "req", *NEW_KEY, "-keyout", "key.pem", "-out", "request", "-subj", "/CN=target")
    signing = ["-in", "request", "-days", str(days), "-extfile", "names", "-out", "target.pem"]
    openssl(folder, "x509", "-req", *signing, *signer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "target.pem", folder / "key.pem")
    return context


def result_from(context: ssl.SSLContext, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    """One GET to a target with this certificate, by a worker that trusts the authorities of the bundle."""
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    subject = Transfers[str](1, 65_536, CurlOptions(Delivery()), Policy(["127.0.0.0/8"], []).verdict)

    def script(client: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(client.dup(), server_side=True) as encrypted:
            read_request(encrypted)
            encrypted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with raw_server(script) as port:
        subject.start("it", Profile("GET", (), False, 10_000), f"https://127.0.0.1:{port}/", None)
        while not (results := dict(subject.poll(1000))):
            pass
    return results["it"]


def assert_refused(result: Result, why: str) -> None:
    assert result.error is ErrorClass.TLS_ERROR and result.status is None
    assert why in str(result.error_detail)
    assert f"`{why}`" in RUNBOOK.read_text()


def test_trusted_one_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert result_from(certificate(folder), folder / "ca.pem", monkeypatch).status == 200


def test_expired_one_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = result_from(certificate(folder, days=-1), folder / "ca.pem", monkeypatch)
    assert_refused(result, "certificate has expired")


def test_one_of_another_host_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = result_from(certificate(folder, names="DNS:other.example"), folder / "ca.pem", monkeypatch)
    assert_refused(result, "no alternative certificate subject name matches")


def test_self_signed_one_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = result_from(certificate(folder, signer=("-signkey", "key.pem")), folder / "ca.pem", monkeypatch)
    assert_refused(result, "self-signed certificate")


def test_one_of_an_unknown_authority_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = certificate(folder)
    openssl(folder, "req", "-x509", *NEW_KEY, "-keyout", "x.key", "-out", "x.pem", "-days", "2", "-subj", "/CN=other")
    assert_refused(result_from(context, folder / "x.pem", monkeypatch), "unable to get local issuer certificate")
