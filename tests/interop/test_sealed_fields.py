"""The producer's code in docs/vault.md, run by Node with nothing but node:crypto, against the worker's code."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from oxherd.errors import PayloadInvalid
from oxherd.settings import Secret
from oxherd.vault.crypto import Key
from oxherd.vault.keyring import KeyRing
from oxherd.vault.payload import open_fields

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "vault.md").read_text()
KEY = base64.b64encode(bytes(range(32))).decode()
RING = KeyRing.of(Secret(KEY))


def sample(language: str) -> str:
    (code,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return code


def as_javascript(code: str) -> str:
    """Node 20 reads no types: without them the sample is JavaScript."""
    return re.sub(r": (unknown|string(\[\])?)(?=[,)])", "", code).replace("ENCRYPTION_KEY!", "ENCRYPTION_KEY")


def node(code: str) -> object:
    if shutil.which("node") is None:
        if os.environ.get("CI") == "true":
            raise AssertionError("CI needs Node: apt-get install -y nodejs")
        pytest.skip("no Node here")
    command = ["node", "--input-type=module", "--eval", as_javascript(sample("ts")) + code]
    environ = {**os.environ, "ENCRYPTION_KEY": KEY}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_sample_needs_node_s_own_crypto_and_about_twenty_lines():
    assert re.findall(r'from "(.*?)"', sample("ts")) == ["node:crypto"]
    assert len(sample("ts").splitlines()) <= 20


def test_the_example_s_producer_seals_as_the_page_says():
    assert (ROOT / "examples" / "typescript_producer" / "seal.ts").read_text() == sample("ts")


def test_what_the_documented_producer_adds_is_what_the_handler_gets():
    queue = "const queue = { add: (name, data) => console.log(JSON.stringify({ name, data })) };"
    added = node(queue + sample("js"))
    assert "4111" not in json.dumps(added)
    secrets = open_fields(added["data"], RING, job=added["name"], tenant="acme")
    assert added["data"] == {
        "tenant": "acme", "order": 42, "card": "4111 1111 1111 1111",
        "payees": [{"iban": "DE02 1203 0000 0000 2020 51"}],
    }  # fmt: skip
    assert len(secrets) == 2


VALUES = [
    "",
    "x",
    "Grüße, 世界, 🐂",
    'quo"te\\\n\u0000',
    0,
    -1.5,
    True,
    None,
    [],
    {"a": [1, {"b": "c"}]},
    "y" * 100_000,
]


def test_any_json_value_that_node_seals_opens_here_at_odd_names_too():
    path, tenant, job = ["a.b", "ü", "0", ""], "Ümlaut & co", "order.pay/ü"
    where = json.dumps([job, tenant, path])
    code = f"console.log(JSON.stringify({json.dumps(VALUES)}.map((value) => seal(value, ...{where}))));"
    for value, field in zip(VALUES, node(code), strict=True):
        data = {"a.b": {"ü": [{"": field}]}}
        open_fields(data, RING, job=job, tenant=tenant)
        assert data == {"a.b": {"ü": [{"": value}]}}


def test_what_node_sealed_for_one_place_opens_at_no_other():
    field = node('console.log(JSON.stringify(seal("x", "order.pay", "", ["card"])));')
    open_fields({"card": dict(field)}, RING, job="order.pay", tenant=None)
    for data, job, tenant in (({"note": field}, "order.pay", None), ({"card": field}, "order.echo", None),
                              ({"card": field}, "order.pay", "acme")):  # fmt: skip
        with pytest.raises(PayloadInvalid, match="bound to another tenant, name or place"):
            open_fields(data, RING, job=job, tenant=tenant)


def test_node_names_the_key_as_we_do():
    assert node("console.log(JSON.stringify(keyId));") == Key.of(Secret(KEY)).id
    assert f"oxherd1.{Key.of(Secret(KEY)).id}." in PAGE
