"""A service's published OpenAPI description, for doubles that refuse what it refuses."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

Body = dict[str, Any]


class Contract:
    """One description, by its file's name. `absent` is why a test without it is skipped."""

    def __init__(self, name: str) -> None:
        self.path = Path(__file__).resolve().parents[3] / "shared" / "contracts" / name
        self.absent = f"{name} is not here to check what is sent"

    @cached_property
    def data(self) -> Body:
        return json.loads(self.path.read_text())

    def operation(self, method: str, path: str) -> Body | None:
        """The published operation for a path, or None where there is none."""
        for exact in (True, False):  # `/keys/legacy` is no `/keys/{id}`
            for pattern, operations in self.data["paths"].items():
                fits = pattern == path if exact else re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", pattern), path)
                if fits and method.lower() in operations:
                    return operations[method.lower()]
        return None

    def faults(self, method: str, path: str, body: Any, query: Body | None = None) -> list[str]:
        """What the schema has against a request: its path, its query, its body."""
        found = self.operation(method, path)
        if found is None:
            return [f"no such operation: {method} {path}"]
        known = {each["name"] for each in found.get("parameters", ()) if each.get("in") == "query"}
        said = [f"{name}: is not known" for name in query or {} if name not in known]
        if "requestBody" not in found:
            return said + ([] if body is None else ["there is to be no body"])
        (content,) = found["requestBody"]["content"].values()
        schema = {**_nullable(content["schema"]), "components": _nullable(self.data["components"])}
        said += [
            f"{'/'.join(map(str, each.path))}: {each.message}"
            for each in Draft202012Validator(schema).iter_errors(body)
        ]
        listed = content["schema"]
        while "$ref" in listed:
            listed = self.data["components"]["schemas"][listed["$ref"].rpartition("/")[2]]
        return said + [f"{name}: is not known" for name in body or {} if name not in listed["properties"]]


def _nullable(schema: Any) -> Any:
    """OpenAPI 3.0's `nullable` in the words of JSON schema."""
    if isinstance(schema, list):
        return [_nullable(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: _nullable(each) for key, each in schema.items() if key != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]} if schema.get("nullable") is True else plain
