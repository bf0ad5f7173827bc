"""What the dashboard hides of payloads and messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxherd.web.dashboard_masks import HIDDEN, Masks, is_secret_name

PASSWORD = "not-a-password"
MASKS = Masks(lambda text: text.replace("s3cret-of-ours", "***"))


@pytest.mark.parametrize(
    "name",
    ["password", "Password", "db_password", "apiKey", "api_key", "x-api-key", "accessToken", "refresh_token",
     "Authorization", "client.secret", "sentryDsn", "privateKey", "credentials", "cookie"],
)  # fmt: skip
def test_what_is_named_like_a_secret_is_hidden(name):
    assert MASKS.data({name: "open sesame"}) == {name: HIDDEN}


@pytest.mark.parametrize(
    "name", ["input_tokens", "max_tokens", "outputTokens", "passenger", "secretary", "keyboard", "tokenizer"]
)
def test_what_only_sounds_like_one_is_shown(name):
    assert not is_secret_name(name)
    assert MASKS.data({name: "four"}) == {name: "four"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("my key is sk-live-0123456789abcdefghij, thanks", f"my key is {HIDDEN}, thanks"),
        (f"postgres://ox:{PASSWORD}@db/jobs", f"postgres://{HIDDEN}@db/jobs"),
        ("Authorization: Bearer abcdefghijklmnop", f"Authorization: {HIDDEN} {HIDDEN}"),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.c2lnbmF0dXJl", HIDDEN),
        ("login failed: password=hunter22&user=ada", f"login failed: password={HIDDEN}&user=ada"),
        ("it was s3cret-of-ours", "it was ***"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE\nabc", HIDDEN),
        ("nothing to hide: 4711, ada@example.com", "nothing to hide: 4711, ada@example.com"),
        ("max_tokens=400", "max_tokens=400"),
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_is_hidden_within_a_text(text, shown):
    assert MASKS.text(text) == shown


def test_json_in_a_text_is_masked_by_its_names():
    assert MASKS.data('{"user": "ada", "password": "open sesame"}') == f'{{"user":"ada","password":"{HIDDEN}"}}'
    assert MASKS.data("[no json") == "[no json"


def test_lists_and_objects_are_looked_through():
    given = {"a": [{"token": "x"}, {"b": ("plain", 1, None)}]}
    assert MASKS.data(given) == {"a": [{"token": HIDDEN}, {"b": ["plain", 1, None]}]}


SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(SHAPES)
def test_any_data_can_be_masked_and_keeps_its_shape(data):
    masked = MASKS.data(data)
    assert type(masked) is type(data)
    if isinstance(data, dict | list):
        assert len(masked) <= len(data)
