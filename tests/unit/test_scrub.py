"""No error carries a credential, however the provider turned it."""

import base64
import json
from urllib.parse import quote, quote_plus

import pytest

from engine.scrub import SCRUBBED, printable, scrubbed

SECRET = "s3cr+t/K=y&!"
CREDENTIALS = {"account": "AC42", "nested": [{"auth_token": SECRET}]}


@pytest.mark.parametrize(
    "turned",
    [
        SECRET,
        quote(SECRET),
        quote(SECRET, ""),
        quote_plus(SECRET),
        quote(quote(SECRET, ""), ""),
        json.dumps(SECRET),
        json.dumps(SECRET).replace("/", "\\/"),
        base64.b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode(),
        base64.b64encode(f"AC42:{SECRET}".encode()).decode(),
        base64.b64encode(f"AC421:{SECRET} and more".encode()).decode(),
        base64.b64encode(f"AC4212:{SECRET}.".encode()).decode(),
    ],
)
def test_a_credential_is_taken_out_however_it_is_written(turned: str) -> None:
    """As it is, in a URL, in JSON, within base64 at any place."""
    text = scrubbed(f"401: bad key {turned} given", CREDENTIALS)

    assert SCRUBBED in text
    assert text.startswith("401: bad key ")
    for at in range(len(turned) - 9):
        assert turned[at : at + 10] not in text or turned.startswith("QUM0Mj")


def test_the_rest_of_a_text_stays() -> None:
    """What is too short to be a secret, too."""
    assert scrubbed("AC42: no such number", CREDENTIALS) == "AC42: no such number"


def test_a_credential_that_was_cut_at_the_end_is_taken_out() -> None:
    """Connectors cut what a provider says."""
    text = f"bad key {SECRET}"[: -len(SECRET) + 8]

    assert scrubbed(text, CREDENTIALS) == f"bad key {SCRUBBED}"


def test_the_secret_part_of_a_url_is_one_too() -> None:
    """Without its host: as a provider would quote it."""
    credentials = {"webhook_url": "https://hooks.example/services/T0/B0/xyzxyz"}

    text = scrubbed("no route to /services/T0/B0/xyzxyz at hooks.example", credentials)

    assert text == f"no route to {SCRUBBED} at hooks.example"


def test_an_error_is_one_line() -> None:
    """Control characters could forge lines of a log, or a terminal's colours."""
    assert printable("a\r\nb\x1b[31m\u2028c\x00é") == "a  b [31m c é"
