"""What the dashboard hides of payloads, results and messages: known secrets, and what is named or looks like one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import orjson

HIDDEN = "•••"
_NAMES = re.compile(
    r"(?:^|[_\-.])(?:pass(?:word|wd|phrase)?|secret|tokens?|api_?-?key|private_?-?key|access_?-?key|authorization|"
    r"cookie|credentials?|bearer|dsn)$",
    re.IGNORECASE,
)
_COUNTS = frozenset({"input_tokens", "output_tokens", "max_tokens", "max_output_tokens", "total_tokens", "tokens"})
# Shapes of keys that services hand out, and of logins in addresses.
_SHAPES = re.compile(
    r"\b(?:sk|pk|rk|ghp|gho|ghs|github_pat|glpat|xox[abprs]|AKIA|ASIA|AIza|sbp|hf)[-_]?[A-Za-z0-9_\-]{16,}"
    r"|\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]+"
    r"|(?<=://)[^/\s:@\"']+:[^/\s@\"']+(?=@)"
    r"|(?i:(?<=bearer ))[A-Za-z0-9._~+/\-]{12,}=*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)",
    re.DOTALL,
)
# `password=…`, `"token": "…"` in the middle of words.
_TOLD = re.compile(
    r"(?i)(\b\w*(?:password|passwd|secret|token|api_?-?key|authorization)[\"']?\s*[:=]\s*[\"']?)([^\s\"',;&}]{3,})"
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class Masks:
    """Hides secrets.

    Parameters:
        hide: takes the values of the process's own secrets out of a text.
    """

    def __init__(self, hide: Callable[[str], str]) -> None:
        self._hide = hide

    def text(self, text: str) -> str:
        """A text without secrets."""
        return _TOLD.sub(_without_value, _SHAPES.sub(HIDDEN, self._hide(text)))

    def data(self, value: Any) -> Any:
        """Data without secrets: by the names of its fields, and as texts in it look."""
        if isinstance(value, dict):
            return {self.text(str(name)): self._field(str(name), each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.data(each) for each in value]
        return self._words(value) if isinstance(value, str) else value

    def _words(self, text: str) -> str:
        # What a tool took or gave is often JSON in a text.
        if text[:1] in {"{", "["}:
            try:
                return orjson.dumps(self.data(orjson.loads(text))).decode()
            except (orjson.JSONDecodeError, TypeError):
                pass
        return self.text(text)

    def _field(self, name: str, value: Any) -> Any:
        if isinstance(value, str | bytes) and value and is_secret_name(name):
            return HIDDEN
        return self.data(value)


def _without_value(found: re.Match[str]) -> str:
    name = re.split(r"[^\w\-]", found[1], maxsplit=1)[0]
    return found[0] if name.lower() in _COUNTS or found[2].isdecimal() else f"{found[1]}{HIDDEN}"


def is_secret_name(name: str) -> bool:
    """Whether what a field of this name holds is not to be seen."""
    plain = _CAMEL.sub("_", name).lower()
    return plain not in _COUNTS and _NAMES.search(plain) is not None
