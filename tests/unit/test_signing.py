# SPDX-License-Identifier: MIT
"""Signatures: what the `standardwebhooks` package accepts, rotation, and that no error shows a secret."""

import base64
import time
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from postbackd.errors import ConfigError
from postbackd.settings_loader import load, render_toml
from postbackd.signing import SigningKeys

OLD = "whsec_" + base64.b64encode(b"o" * 24).decode()
NEW = "whsec_" + base64.b64encode(b"n" * 32).decode()
OTHER = "whsec_" + base64.b64encode(b"x" * 32).decode()


def headers(keys: SigningKeys, body: bytes | None, timestamp_s: int | None = None) -> dict[str, str]:
    lines = keys.headers("k", "0123456789abcdef", int(time.time()) if timestamp_s is None else timestamp_s, body)
    return dict(line.decode().split(": ", 1) for line in lines)


@pytest.mark.parametrize("body", [b'{"a": "\xc3\xa9"}', b"a=1&b=2", b"", None])
def test_signature_is_verified_by_the_reference_package(body: bytes | None) -> None:
    sent = headers(SigningKeys({"k": NEW}), body)
    Webhook(NEW).verify(body or b"", sent, json_parse=False)
    for secret, data in [(OTHER, body or b""), (NEW, b"another body")]:
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(data, sent, json_parse=False)


def test_signature_of_the_specifications_example() -> None:
    """The example that Standard Webhooks prints: id, time, body, secret and what comes of them."""
    keys = SigningKeys({"k": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"})
    lines = keys.headers("k", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert lines[2] == b"webhook-signature: v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("value", [f"{NEW} {OLD}", f"{NEW},{OLD}", f" {NEW} ,\n{OLD} ", [NEW, OLD], [f"{NEW} {OLD}"]])
def test_every_secret_of_a_key_signs(value: Any) -> None:
    sent = headers(SigningKeys({"k": value}), b"{}")
    assert sent["webhook-signature"].count("v1,") == 2
    for secret in (OLD, NEW):
        Webhook(secret).verify(b"{}", sent)


def test_old_signature_is_too_old_for_a_receiver() -> None:
    with pytest.raises(WebhookVerificationError, match="too old"):
        Webhook(NEW).verify(b"{}", headers(SigningKeys({"k": NEW}), b"{}", int(time.time()) - 400))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"k": ""}, "signing_keys.k: has 0 secrets"),
        ({"k": [OLD] * 9}, "signing_keys.k: has 9 secrets"),
        ({"k": f"{OLD} whsec_s3cret!"}, "signing_keys.k: secret 2"),
        ({"k": "whsec_"}, "signing_keys.k: secret 1"),
        ({"a b": OLD}, "no name of a key"),
        ({"": OLD}, "no name of a key"),
    ],
)
def test_wrong_key_is_named_and_not_shown(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SigningKeys(setting)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value) and OLD[6:] not in str(caught.value)


def test_short_secret_is_known() -> None:
    assert SigningKeys({"k": OLD, "short": "whsec_" + base64.b64encode(b"s" * 23).decode()}).short() == ["short"]


def test_no_output_of_the_configuration_has_a_secret() -> None:
    settings = load(None, {}, [f'security.signing_keys={{a = "{OLD}", b = ["{NEW}", "{OLD}"]}}'])
    assert settings.security.signing_keys == {"a": OLD, "b": [NEW, OLD]}
    assert 'signing_keys = { "a" = "***", "b" = "***" }' in render_toml(settings)
    for wrong in (f"security.signing_keys={OLD}", f"security.signing_keys.k={OLD}", f"security.signing_key={OLD}"):
        with pytest.raises(ConfigError) as caught:
            load(None, {}, [wrong])
        assert "security.signing_key" in str(caught.value)
        assert OLD not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        load(None, {"POSTBACKD_SECURITY__SIGNING_KEYS": f'["{OLD}"]'}, [])
    assert OLD not in str(caught.value)
