from __future__ import annotations

from pathlib import Path

import pytest
from graphql import build_schema, parse, validate

from oxherd.cloud.railway_wire import documents

CONTRACT = Path(__file__).resolve().parents[3] / "shared" / "contracts" / "railway.schema.graphql"


@pytest.mark.skipif(not CONTRACT.exists(), reason=f"{CONTRACT.name} is not here to check what is sent")
@pytest.mark.parametrize("operation", documents())
def test_railway_s_published_schema_knows_what_is_sent(operation):
    schema = build_schema(CONTRACT.read_text(), assume_valid=True)
    assert validate(schema, parse(documents()[operation])) == []
