from __future__ import annotations

import pytest

from oxherd.errors import SettingsError, UsageError
from oxherd.ops import env, env_push
from oxherd.settings import Secret, load

KEY = env.new_key()


def secret(**values: str) -> dict[str, Secret]:
    return {name: Secret(value) for name, value in values.items()}


def good(**more: str) -> dict[str, Secret]:
    return secret(
        **{
            "REDIS_URL": "rediss://default:s3cr3t@cache.acme.io:6379/0",
            "DATABASE_URL": "postgresql://oxherd:hidden@db.acme.io:5432/app",
            "ENCRYPTION_KEY": KEY,
            **more,
        }
    )


def kinds(faults: list[env.Fault]) -> set[tuple[str, str]]:
    return {(fault.variable, fault.kind) for fault in faults}


def test_nothing_is_wrong_with_variables_that_fit() -> None:
    assert env.check(".env", good(), others={}) == []


@pytest.mark.parametrize(
    ("more", "variable", "kind"),
    [
        ({"REDIS_URL": ""}, "REDIS_URL", "missing"),
        ({"DATABASE_URL": ""}, "DATABASE_URL", "missing"),
        ({"JOB_CONCURRENCY": "many"}, "JOB_CONCURRENCY", "malformed"),
        ({"ENCRYPTION_KEY": "short"}, "ENCRYPTION_KEY", "malformed"),
        ({"OPENROUTER_API_KEY": "sk-or-v1-your-key"}, "OPENROUTER_API_KEY", "placeholder"),
        ({"SUPABASE_URL": "https://your-project.supabase.co"}, "SUPABASE_URL", "placeholder"),
        ({"ENCRYPTION_KEY": "A" * 43 + "="}, "ENCRYPTION_KEY", "weak"),
        ({"API_TOKEN": "aaaaaaaabbbbbbbb"}, "API_TOKEN", "weak"),
        ({"ALERT_WEBHOOK_SECRET": "hunter2"}, "ALERT_WEBHOOK_SECRET", "weak"),
        ({"SENTRY_AUTH_TOKEN": KEY}, "SENTRY_AUTH_TOKEN", "duplicated"),
        ({"OPENROUTER_APIKEY": env.new_key()}, "OPENROUTER_APIKEY", "unused"),
    ],
)
def test_each_kind_of_fault_is_found_and_says_what_to_do(more: dict[str, str], variable: str, kind: str) -> None:
    faults = env.check(".env", good(**more), others={})
    assert (variable, kind) in kinds(faults)
    assert all(fault.fix for fault in faults)


def test_no_fault_shows_a_value() -> None:
    values = good(JOB_CONCURRENCY="many-99", API_TOKEN="leaky-leaky-leak", REDIS_URL="http://u:topsecret@h")
    said = repr(env.check(".env", values, others={"Dockerfile": secret(REDIS_URL="redis://other-secret@h")}))
    assert not [value for value in ("many-99", "leaky", "topsecret", "other-secret") if value in said]


def test_a_sealed_variable_is_there_though_nobody_can_read_it() -> None:
    values = good()
    del values["REDIS_URL"]
    del values["DATABASE_URL"]
    assert env.check("Railway", values, others={}, sealed=["REDIS_URL", "DATABASE_URL"]) == []


def test_places_that_differ_are_told_by_name(tmp_path) -> None:
    (tmp_path / "Dockerfile").write_text('FROM x\nENV PORT=8080 \\\n    LOG_LEVEL="debug" PATH=/bin\nCMD ["a"]\n')
    (tmp_path / ".railway").mkdir()
    (tmp_path / ".railway" / "railway.py").write_text(
        'main = lambda: {"variables": {"JOB_CONCURRENCY": "9", "PORT": 8080}}'
    )
    others = env.in_project(tmp_path)
    faults = env.check("Railway", good(PORT="8080", LOG_LEVEL="info", JOB_CONCURRENCY="5"), others=others)
    assert {(fault.variable, fault.message) for fault in faults} == {
        ("LOG_LEVEL", "Railway and Dockerfile have different values"),
        ("JOB_CONCURRENCY", "Railway and .railway/railway.py have different values"),
    }


def test_a_file_s_quotes_comments_and_repetitions_are_read() -> None:
    text = '# mine\nexport A=1 # one\nB="two words \\"q\\"\\nnext"\nC=\'$x # y\'\nA=2\nD=\n'
    values, twice = env.parse(text, ".env")
    assert {name: value.reveal() for name, value in values.items()} == {
        "A": "2", "B": 'two words "q"\nnext', "C": "$x # y", "D": "",
    }  # fmt: skip
    assert twice == ["A"]
    with pytest.raises(UsageError, match=r"\.env, line 2: must be NAME=value"):
        env.parse("A=1\nthis is my s3cret", ".env")


def test_what_is_rendered_reads_the_same_again() -> None:
    values = secret(PLAIN="a-b.c", SPACES="a b", HASH="a#b", QUOTES="a\"b'c", LINES="a\nb\\n", EMPTY="", DOLLAR="$x")
    assert env.parse(env.render(values), "it")[0] == values
    assert env.parse('{"A": "b c"}', "it")[0] == secret(A="b c")


def test_fingerprints_tell_values_apart_but_can_t_be_tested_against_guesses() -> None:
    one, other = env.Fingerprints(None), env.Fingerprints(None)
    assert one.of(Secret("5")) == one.of(Secret("5")) != one.of(Secret("6"))
    assert one.of(Secret("5")) != other.of(Secret("5"))
    shared = Secret(env.new_key())
    assert env.Fingerprints(shared).of(Secret("5")) == env.Fingerprints(shared).of(Secret("5"))


def test_differences_are_names_and_fingerprints_and_sealed_ones_are_unknown() -> None:
    here, there = secret(A="1", B="2", C="3", S="9"), secret(A="1", B="other", D="4", RAILWAY_SERVICE_ID="x")
    found = env.differences(here, there, ["S"], env.Fingerprints(None))
    assert {each.name: each.state for each in found} == {
        "A": "same", "B": "differs", "C": "only here", "D": "only there", "S": "unknown",
    }  # fmt: skip


def test_a_plan_writes_only_what_changes_and_removes_nothing() -> None:
    made = env_push.plan(
        secret(JOB_CONCURRENCY="9", LOG_LEVEL="info", API_TOKEN="a-new-token-0123456789", MINE="x", OLD="o"),
        secret(JOB_CONCURRENCY="5", LOG_LEVEL="info", OTHER="stays", OLD="n"),
        ["API_TOKEN"],
    )
    assert {each.name: each.action for each in made.changes} == {
        "JOB_CONCURRENCY": "update", "LOG_LEVEL": "keep", "API_TOKEN": "update", "MINE": "create", "OLD": "update",
    }  # fmt: skip
    assert set(made.values) == {"JOB_CONCURRENCY", "API_TOKEN", "MINE", "OLD"}
    assert "sealed" in next(each.detail for each in made.changes if each.name == "API_TOKEN")
    assert "a-new-token" not in repr(made)
    assert env_push.plan(secret(A="1"), secret(A="1")).is_empty


def test_malformed_values_are_refused_before_anything_is_written() -> None:
    with pytest.raises(SettingsError, match="JOB_CONCURRENCY must be a whole number"):
        env_push.plan(secret(JOB_CONCURRENCY="many"), {})
    with pytest.raises(UsageError, match="RAILWAY_SERVICE_ID is set by Railway itself"):
        env_push.plan(secret(RAILWAY_SERVICE_ID="x"), {})
    env_push.plan(secret(LOG_LEVEL="info"), secret(REDIS_URL="${{Redis.REDIS_URL}}"))


def test_a_generated_key_is_one_that_the_settings_take() -> None:
    assert load({"ENCRYPTION_KEY": env.new_key()}, needs=()).encryption_key is not None


def test_a_note_behind_a_value_is_no_part_of_it():
    text = "A=plain # note\nB=\"two # words\" # note\nC='x#y' # note\nD= # note\nE=#abc\nexport F=a#b\nG=\n"
    found, _ = env.parse(text, ".env")
    assert {name: value.reveal() for name, value in found.items()} == {
        "A": "plain", "B": "two # words", "C": "x#y", "D": "", "E": "#abc", "F": "a#b", "G": "",
    }  # fmt: skip
