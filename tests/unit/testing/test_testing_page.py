from __future__ import annotations

import re
from pathlib import Path

import pytest

from oxherd import testing
from oxherd.testing import fixtures

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "testing.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_page_s_tests_pass_on_the_readme_s_agent(pytester: pytest.Pytester):
    (tests,) = blocks(PAGE, "python")
    pytester.makepyfile(jobs=blocks((ROOT / "README.md").read_text(), "python")[0], test_support=tests)
    pytester.makeconftest(blocks(PAGE, "py")[0])
    done = pytester.runpytest_subprocess("-p", "no:valkey", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto")
    done.assert_outcomes(passed=tests.count("async def test_"))


def test_the_page_knows_every_fixture_and_every_name():
    made = {name for name in vars(fixtures) if name.startswith("oxherd_")}
    assert set(re.findall(r"\boxherd_\w+", PAGE)) == made - {"oxherd_schema"}
    mentioned = set(re.findall(r"\w+", PAGE))
    assert set(testing.__all__) - mentioned <= {"Asked", "Events", "Serving"}
