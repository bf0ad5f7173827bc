"""`oxherd audit secrets` on repositories made here, with secrets made here."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import os
import secrets
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import jsonschema
import pytest
from bench.audit.planted import Repository, alnum, openrouter, plant, uuid
from typer.testing import CliRunner

from oxherd.cli import app
from oxherd.errors import UsageError
from oxherd.ops import audit_formats, audit_known, audit_secrets
from oxherd.ops.audit_known import Accepted, Known, Marker
from oxherd.ops.audit_rules import KINDS, RULES, masked
from oxherd.ops.audit_secrets import AuditFailed, audit
from oxherd.ops.audit_sources import Place, Scope
from oxherd.ops.audit_views import views
from oxherd.settings import Secret, load

# The schema that GitHub's code scanning names, as Microsoft's package of test helpers brings it.
SARIF = Path(__file__).parents[2] / "interop/node/node_modules/@microsoft/jest-sarif/lib/schemas/sarif-2.1.0-rtm.5.json"
TODAY = date(2026, 11, 28)
run = CliRunner().invoke


def look(folder, scope=None, *, known=None, marker=None, installed=()):
    marker = marker or Marker(None)
    return audit(folder, scope or Scope(), marker, known or Known(), installed=installed, today=TODAY)


def values(report):
    return [each.value.reveal() for each in report.findings]


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("history") / "shop", filler=3)


@pytest.fixture(scope="module")
def report(history):
    return look(history.folder)


@pytest.fixture
def repo(tmp_path):
    made = Repository(tmp_path / "app")
    made.commit("README.md", "# An app\n")
    return made


def test_every_planted_secret_is_found_wherever_it_was_left(history, report):
    found = values(report)
    missed = [name for name, secret in history.planted.items() if not any(secret in value for value in found)]
    assert missed == []
    assert len(history.planted) >= 28


def test_nothing_harmless_is_taken_for_a_secret(history, report):
    planted = history.planted.values()
    extra = [each for each in report.failing if not any(secret in each.value.reveal() for secret in planted)]
    assert extra == []


def test_keys_that_are_made_to_be_public_are_told_as_notes(report):
    notes = {each.kind.rule for each in report.findings if each.level.word == "note"}
    assert notes == {"oxherd.supabase-jwt-anon", "oxherd.supabase-publishable-key"}


def test_a_finding_says_who_brought_it_when_and_whether_it_is_still_there(history, report):
    by_value = {each.value.reveal(): each for each in report.findings}
    gone = by_value[history.planted["openrouter: .env, deleted"]]
    assert (gone.first.path, gone.first.line, gone.first.author) == (".env", 1, "Ada <ada@example.com>")
    shown = subprocess.run(
        ["git", "-C", str(history.folder), "show", f"{gone.first.commit}:.env"], capture_output=True, text=True
    )
    assert gone.value.reveal() in shown.stdout
    assert not gone.in_head
    assert gone.first.at > 1_780_000_000
    assert by_value[history.planted["openrouter: log line"]].in_head
    assert by_value[history.planted["openrouter: tag message"]].first.place is Place.TAG
    assert by_value[history.planted["openrouter: deleted branch"]].first.place is Place.UNREACHABLE
    jwt = by_value[history.planted["supabase: service_role JWT"]]
    assert jwt.kind.name == "Supabase JWT, role service_role"
    assert jwt.kind.rotation == "`oxherd rotate SUPABASE_SERVICE_ROLE_KEY`"


def test_no_form_of_the_report_holds_a_secret(history, report):
    forms = (
        audit_formats.text(report), audit_formats.page(report), json.dumps(audit_formats.sarif(report)),
        json.dumps(audit_formats.data(report), default=str), repr(report),
    )  # fmt: skip
    for form in forms:
        for name, secret in history.planted.items():
            assert secret not in form, name
            assert secret[len(secret) // 2 :] not in form, name


def test_the_worst_come_first_and_the_last_line_counts(report):
    text = audit_formats.text(report)
    assert text.startswith("error: ")
    assert (
        text.rstrip().splitlines()[-1].startswith(f"{len(report.failing)} secrets to deal with, 2 accepted or harmless")
    )


def test_sarif_is_what_code_scanning_takes(report):
    made = json.loads(json.dumps(audit_formats.sarif(report)))
    assert (made["version"], set(made)) == ("2.1.0", {"$schema", "version", "runs"})
    (one,) = made["runs"]
    rules = one["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    assert all(0 < float(rule["properties"]["security-severity"]) <= 10 for rule in rules)
    assert len(one["results"]) == len(report.findings)
    for result in one["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in {"none", "note", "warning", "error"}
        assert result["message"]["text"]
        place = result["locations"][0]["physicalLocation"]
        assert place["region"]["startLine"] >= 1
        assert not place["artifactLocation"]["uri"].startswith("/")
        assert " " not in place["artifactLocation"]["uri"]
        assert set(result["partialFingerprints"]) == {"oxherdSecret/v1"}


@pytest.mark.skipif(not SARIF.exists() and os.environ.get("CI") != "true", reason="no schema of SARIF: make node")
def test_sarif_is_valid_by_its_published_schema(report):
    schema = json.loads(SARIF.read_text())
    checked = jsonschema.validators.validator_for(schema)(schema)
    (first, *rest), today = report.findings, report.today
    kept = dataclasses.replace(first, accepted=Accepted(first.fingerprint, "a test's", today + timedelta(days=1)))
    for each in (report, dataclasses.replace(report, findings=(kept, *rest)), dataclasses.replace(report, findings=())):
        made = json.loads(json.dumps(audit_formats.sarif(each)))
        assert [f"{list(fault.path)}: {fault.message}" for fault in checked.iter_errors(made)] == []


def test_the_page_escapes_what_it_quotes(repo):
    repo.commit("<b>.env", f"KEY={openrouter()}\n")
    page = audit_formats.page(look(repo.folder))
    assert html.escape("<b>.env") in page
    assert "<b>.env" not in page


def test_an_accepted_finding_is_shown_and_does_not_fail_until_it_expires(repo):
    repo.commit("a.py", f'KEY = "{openrouter()}"\n')
    (found,) = look(repo.folder).findings
    known = Known("", {found.fingerprint: Accepted(found.fingerprint, "a key of a test", TODAY + timedelta(days=1))})
    kept = look(repo.folder, known=known)
    assert (len(kept.findings), kept.failing) == (1, ())
    assert "accepted     until 2026-11-29: a key of a test" in audit_formats.text(kept)
    assert "suppressions" in audit_formats.sarif(kept)["runs"][0]["results"][0]
    later = dataclasses.replace(kept, today=TODAY + timedelta(days=1))
    assert len(later.failing) == 1
    assert "which has passed" in audit_formats.text(later)


def test_the_file_of_what_is_known_is_read_as_it_was_written(tmp_path):
    marker, file = Marker(Secret(base64.b64encode(secrets.token_bytes(32)).decode())), tmp_path / "known.toml"
    mark = marker.of(b"something")
    installed = tuple(audit_known.fingerprints([("API_TOKEN", Secret("a" * 20)), ("SHORT", Secret("abc"))], marker))
    known = Known(marker.id, {mark: Accepted(mark, 'said "so"', TODAY)}, installed)
    audit_known.save(file, known)
    assert audit_known.load(file, marker) == known
    assert [each.variable for each in installed] == ["API_TOKEN"]
    with pytest.raises(UsageError, match="made with another AUDIT_KEY"):
        audit_known.load(file, Marker(None))


@pytest.mark.parametrize(
    "line",
    [
        'reason = "x"',
        'reason = "x"\nexpires = 2027-01-01T00:00:00',
        "expires = 2027-01-01",
        'reason = " "\nexpires = 2027-01-01',
    ],
)
def test_an_acceptance_needs_a_reason_and_a_day(tmp_path, line):
    marker, file = Marker(None), tmp_path / "known.toml"
    file.write_text(f'key = "{marker.id}"\n[[accepted]]\nfingerprint = "{"0" * 32}"\n{line}\n')
    with pytest.raises(UsageError, match="needs a reason, and a day"):
        audit_known.load(file, marker)


@pytest.mark.parametrize(
    "lines",
    [
        "accepted = 3",
        "accepted = [3]",
        '[[installed]]\nvariable = "API_TOKEN"',
        '[[installed]]\nvariable = "A"\nlength = "x"',
    ],
)
def test_a_file_that_somebody_broke_is_told_by_what_it_takes(tmp_path, lines):
    marker, file = Marker(None), tmp_path / "known.toml"
    file.write_text(f'key = "{marker.id}"\n{lines}\n')
    with pytest.raises(UsageError, match="takes variable, length and fingerprint"):
        audit_known.load(file, marker)


def test_this_installation_s_own_secrets_are_found_though_no_rule_knows_them(repo):
    token, password = f"{secrets.token_hex(4)} {secrets.token_hex(4)} wörd", secrets.token_hex(6)
    settings = load({"ALERT_WEBHOOK_SECRET": token, "REDIS_URL": f"redis://:{password}@h"}, needs=())
    repo.commit("notes.md", f"we use {token} there\nand {password} here\n")
    assert {each.kind.rule for each in look(repo.folder, installed=settings.named_secrets).findings} == {
        "oxherd.installed.ALERT_WEBHOOK_SECRET",
        "oxherd.installed.REDIS_URL",
    }


def test_a_list_of_fingerprints_finds_them_for_those_who_do_not_have_the_secrets(repo):
    marker = Marker(Secret(base64.b64encode(secrets.token_bytes(32)).decode()))
    token = secrets.token_hex(24)
    listed = tuple(audit_known.fingerprints([("API_TOKEN", Secret(token))], marker))
    assert token not in repr(listed)
    repo.commit("a.txt", f"curl -H 'x: {token}' and path/{token}/more and {token[:-1]}\n")
    (found,) = look(repo.folder, known=Known(marker.id, {}, listed), marker=marker).findings
    assert (found.kind.rule, found.value.reveal()) == ("oxherd.installed.API_TOKEN", token)


def test_fingerprints_differ_from_key_to_key():
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    assert Marker(Secret(key)).of(b"x") == Marker(Secret(key)).of(b"x") != Marker(None).of(b"x")


@pytest.mark.parametrize("last", ["a", "/", "+"], ids=["letter", "slash", "plus"])
@pytest.mark.parametrize("after", ["\n", '"', ""], ids=["line", "quote", "end"])
def test_the_key_of_an_aws_account_may_end_in_any_of_its_characters(tmp_path, last, after):
    key = base64.b64encode(secrets.token_bytes(30)).decode()[:39] + last
    (tmp_path / "a.txt").write_text(f"aws_secret_access_key = {after.strip()}{key}{after}")
    assert values(look(tmp_path)) == [key]


def test_a_comment_does_not_hide_a_secret(repo):
    repo.commit("a.py", f'KEY = "{openrouter()}"  # gitleaks:allow  kingfisher:ignore  betterleaks:allow\n')
    assert len(look(repo.folder).failing) == 1


def test_what_is_staged_is_looked_at_before_it_is_committed(repo):
    repo.commit("old.env", f"KEY={openrouter()}\n")
    new = openrouter()
    repo.write("new.env", f"KEY={new}\n")
    assert look(repo.folder, Scope(staged=True)).findings == ()
    repo.git("add", "new.env")
    assert values(look(repo.folder, Scope(staged=True))) == [new]


def test_the_first_commit_can_be_looked_at_too(tmp_path):
    repo, new = Repository(tmp_path / "new"), openrouter()
    repo.write("a.env", f"KEY={new}\n")
    repo.git("add", "a.env")
    assert values(look(repo.folder, Scope(staged=True))) == [new]


def test_only_commits_since_another_are_looked_at(repo):
    repo.commit("old.env", f"KEY={openrouter()}\n")
    base = repo.git("rev-parse", "HEAD").strip()
    new, told = openrouter(), openrouter()
    repo.commit("new.env", f"KEY={new}\n", f"With {told}")
    assert set(values(look(repo.folder, Scope(since=base)))) == {new, told}
    with pytest.raises(UsageError, match="--since is empty"):
        look(repo.folder, Scope(since=""))
    with pytest.raises(UsageError, match="--since nowhere is no commit"):
        look(repo.folder, Scope(since="nowhere"))


def test_a_local_env_file_that_git_ignores_is_where_secrets_belong(repo):
    repo.commit(".gitignore", ".env\n")
    repo.write(".env", f"OPENROUTER_API_KEY={openrouter()}\n")
    (repo.folder / ".env").chmod(0o600)
    (found,) = look(repo.folder).findings
    assert (found.level.word, found.first.place) == ("note", Place.IGNORED)
    (repo.folder / ".env").chmod(0o644)
    (found,) = look(repo.folder).findings
    assert (found.level.word, found.first.place) == ("warning", Place.READABLE)


def test_what_docker_would_take_into_an_image_is_found_though_git_ignores_it(repo):
    repo.commit(".gitignore", "*.env\nlocal/\nkeep/\n")
    repo.commit("Dockerfile", "FROM scratch\nCOPY . .\n")
    repo.commit(".dockerignore", "# comment\nlocal\n**/*.env\n!prod.env\n")
    into_image, left_out = openrouter(), openrouter()
    repo.write("prod.env", f"KEY={into_image}\n")
    repo.write("deep/dev.env", f"KEY={left_out}\n")
    repo.write("local/x.txt", f"KEY={left_out}\n")
    (found,) = look(repo.folder).findings
    assert (found.value.reveal(), found.first.place, found.level.word) == (into_image, Place.IMAGE, "error")


def test_a_file_s_name_can_be_a_secret_and_is_masked(repo):
    key = openrouter()
    repo.commit(f"{key}.txt", "nothing\n")
    report = look(repo.folder)
    assert values(report) == [key]
    assert key not in audit_formats.text(report)


def test_a_secret_in_a_name_is_told_by_that_name_and_by_whether_it_is_still_there(repo):
    file, person = openrouter(), openrouter()
    repo.commit(f"{file}.txt", "nothing\n", "One")
    repo.git("rm", "-q", f"{file}.txt")
    repo.commit("a.txt", "something\n", "Two")
    repo.git("commit", "-q", "--amend", "--no-edit", f"--author=Bob <{person}@example.com>")
    report = look(repo.folder)
    assert {(each.value.reveal(), each.first.path, each.in_head) for each in report.findings} == {
        (file, f"{masked(file)}.txt", False),
        (person, f"Bob <{masked(person)}@example.com>", True),
    }
    for form in (audit_formats.text(report), audit_formats.page(report), json.dumps(audit_formats.sarif(report))):
        assert file not in form
        assert person not in form


def test_a_terminal_does_not_obey_what_a_repository_is_called(repo):
    repo.commit("a\x1b[31m\n.txt", f"{openrouter()}\n")
    repo.commit("b.txt", f"{openrouter()}\n")
    repo.git("commit", "-q", "--amend", "--no-edit", "--author=E\x1b[2Kve <eve@example.com>")
    text = audit_formats.text(look(repo.folder))
    assert "a\\x1b[31m\\n.txt:1" in text
    assert "E\\x1b[2Kve <eve@example.com>" in text
    assert "\x1b" not in text


def test_a_name_that_is_no_utf_8_does_not_stop_the_audit(tmp_path):
    key = openrouter()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text(key)
    report = look(tmp_path)
    assert [(each.value.reveal(), each.first.path) for each in report.findings] == [(key, "caf\ufffd.txt")]
    assert "caf\ufffd.txt" in audit_formats.text(report)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_can_t_be_read_is_told(tmp_path):
    (tmp_path / "locked").mkdir(mode=0)
    assert look(tmp_path).skipped == ("locked can't be read: Permission denied",)


@pytest.mark.parametrize("flag", ["--skip-worktree", "--assume-unchanged"])
def test_a_change_that_git_was_told_not_to_see_is_seen(repo, flag):
    key = openrouter()
    repo.git("update-index", flag, "README.md")
    repo.write("README.md", f"{key}\n")
    assert values(look(repo.folder)) == [key]


def test_what_is_not_here_to_be_looked_through_is_told(repo, tmp_path):
    lib = Repository(tmp_path / "lib")
    lib.commit("a.txt", "nothing\n")
    repo.git("-c", "protocol.file.allow=always", "submodule", "add", "-q", str(lib.folder), "lib")
    repo.commit("film.mp4", "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 12345\n")
    repo.git("clone", "-q", "--depth=1", repo.folder.as_uri(), str(tmp_path / "shallow"))
    report = look(tmp_path / "shallow")
    assert report.skipped == (
        "film.mp4 is kept by Git LFS, and only its pointer was read",
        "lib is a submodule: audit that folder itself",
        "older commits are not here, this is a shallow clone: `git fetch --unshallow` brings them",
    )
    assert "skipped: lib is a submodule" in audit_formats.text(report)
    repo.git("config", "uploadpack.allowFilter", "true")
    partial = str(tmp_path / "partial")
    repo.git("clone", "-q", "--no-checkout", "--filter=blob:none", repo.folder.as_uri(), partial)
    assert "versions of files that are not here: 3; `git fetch --refetch --no-filter` makes a partial clone whole" in (
        look(Path(partial)).skipped
    )


def test_a_file_that_is_too_large_is_named(repo, monkeypatch):
    monkeypatch.setattr("oxherd.ops.audit_sources.LARGEST", 1 << 20)
    repo.commit("old/dump.sql", "insert\n" * 200_000)
    repo.delete("old/dump.sql")
    assert look(repo.folder).skipped == ("old/dump.sql is larger than 1 MB",)


@pytest.mark.parametrize(
    "text",
    [
        "POSTGRES_PASSWORD=SHORT", "      - PGPASSWORD=SHORT", 'REDIS_PASSWORD: "SHORT"', "password: SHORT",
        '"password": "SHORT",', 'db_password = "SHORT"', "host=db.example.org user=app password=SHORT",
        "postgresql:///app?host=db.example.org&password=SHORT", "db.example.org:5432:app:app:SHORT",
        "ALTER ROLE app WITH LOGIN PASSWORD 'SHORT';", "requirepass SHORT", "redis-cli -h cache -a SHORT ping",
        "user oxherd on ~bull:* >SHORT +@all", "ALERT_WEBHOOK_SECRET=LONG", "client_secret: 'LONG'",
        "AWS_SESSION_TOKEN=LONG", "AZURE_STORAGE_ACCOUNT_KEY=LONG", "BACKUP_SECRET_ACCESS_KEY=LONG",
        "machine git.example.org login bob password SHORT", "Authorization: Basic LONG",
    ],
)  # fmt: skip
def test_a_password_is_found_by_what_stands_before_it(tmp_path, text):
    made = f"4{alnum(38)}x" if "LONG" in text else f"4{alnum(20)}x"
    (tmp_path / "a.txt").write_text(text.replace("LONG", made).replace("SHORT", made) + "\n")
    assert values(look(tmp_path)) == [made]


@pytest.mark.parametrize(
    "text",
    [
        "POSTGRES_PASSWORD=correct-horse-battery-staple1", "password: ${POSTGRES_PASSWORD}",
        "password=self.password_of(me1)", 'API_SECRET = "read-it-from-the-environment1"',
        "PGPASSWORD=$(cat /run/secrets/pg)", "requirepass changeme12345",
    ],
)  # fmt: skip
def test_words_after_the_name_of_a_password_are_none(tmp_path, text):
    (tmp_path / "a.txt").write_text(f"{text}\n")
    assert values(look(tmp_path)) == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OPENROUTER_MANAGEMENT_KEY", openrouter), ("RAILWAY_API_TOKEN", uuid),
        ("SUPABASE_ACCESS_TOKEN", lambda: f"sbp_{secrets.token_hex(20)}"),
        ("AUDIT_KEY", lambda: base64.b64encode(secrets.token_bytes(32)).decode()),
        ("API_READ_TOKEN", lambda: secrets.token_hex(24)),
    ],
    ids=["management key", "account token", "access token", "audit key", "read token"],
)  # fmt: skip
@pytest.mark.parametrize("form", ["export {}={}\n", '"{}": "{}"', "{}: '{}'"], ids=["shell", "json", "yaml"])
def test_the_variable_is_the_one_that_the_text_names(tmp_path, form, variable, value):
    (tmp_path / "a.txt").write_text(form.format(variable, value()))
    assert [each.kind.variable for each in look(tmp_path).findings] == [variable]


def test_a_login_is_told_by_its_variable_too(tmp_path):
    (tmp_path / "a.txt").write_text(
        f"DATABASE_ADMIN_URL=postgresql://admin:{secrets.token_hex(12)}@db.example.org/app\n"
    )
    (found,) = look(tmp_path).findings
    assert (found.kind.variable, found.kind.rotation.startswith("by hand")) == ("DATABASE_ADMIN_URL", True)


def test_a_kubernetes_secret_is_told_by_the_name_of_its_entry(tmp_path):
    held = base64.b64encode(base64.b64encode(secrets.token_bytes(32))).decode()
    (tmp_path / "a.yaml").write_text(f"apiVersion: v1\nkind: Secret\ndata:\n  ENCRYPTION_KEY: {held}\n")
    assert [each.kind.variable for each in look(tmp_path).findings] == ["ENCRYPTION_KEY"]


def test_both_of_two_older_keys_are_found(tmp_path):
    keys = [base64.b64encode(secrets.token_bytes(32)).decode() for _ in range(2)]
    (tmp_path / "a.env").write_text(f"ENCRYPTION_KEYS_PREVIOUS={','.join(keys)}\n")
    assert set(values(look(tmp_path))) == set(keys)


def test_a_plain_folder_needs_no_git(tmp_path):
    key = openrouter()
    (tmp_path / "notes.txt").write_text(f"{key}\n")
    assert values(look(tmp_path)) == [key]
    with pytest.raises(UsageError, match="is in no git repository"):
        look(tmp_path, Scope(staged=True))


def test_shell_histories_are_read_on_request(tmp_path, monkeypatch):
    home, key = tmp_path / "home", openrouter()
    home.mkdir()
    (home / ".bash_history").write_text(f"export OPENROUTER_API_KEY={key}\n")
    monkeypatch.setattr(Path, "home", lambda: home)
    (tmp_path / "empty").mkdir()
    assert values(look(tmp_path / "empty")) == []
    (found,) = look(tmp_path / "empty", Scope(shell_history=True)).findings
    assert (found.value.reveal(), found.first.path) == (key, "~/.bash_history")


@pytest.mark.parametrize(
    "mangle",
    [
        lambda text: text.replace("-", "\u2011").encode(),
        lambda text: text.replace("-", "\u2013").encode().decode("cp1252").encode(),
        lambda text: text.replace("-", "\u2013").encode().decode("cp1252").encode().decode("cp1252").encode(),
        lambda text: "\u200b".join(text).encode(),
        lambda text: text.replace("-", "&#45;").encode(),
        lambda text: text.replace("-", "%2D").encode(),
        lambda text: text.replace("-", "\\u002d").encode(),
        lambda text: text.replace("=", "=3D").replace("v1", "v=\n1").encode(),
        lambda text: text.encode("utf-16-be"),
        lambda text: base64.encodebytes(text.encode() * 3),
        lambda text: base64.b64encode(base64.b64encode(base64.b64encode(text.encode()))),
    ],
    ids=["dashes", "mojibake", "twice", "invisible", "html", "percent", "escapes", "mail", "utf16", "lines", "layers"],
)
def test_a_mangled_document_is_mended_and_read(tmp_path, mangle):
    key = openrouter()
    (tmp_path / "letter.txt").write_bytes(mangle(f"KEY={key} \n"))
    assert values(look(tmp_path)) == [key]


def test_plain_text_has_no_other_readings():
    assert list(views(b"def price(order):\n    return order.total\n" * 50)) == []


def test_a_broken_archive_does_not_stop_the_audit(repo):
    key = openrouter()
    repo.commit("broken.zip", b"PK\x03\x04" + secrets.token_bytes(50))
    repo.commit("a.key", "no keynote at all\n")
    repo.commit("b.txt", key)
    report = look(repo.folder)
    assert key in values(report)


@pytest.mark.parametrize(
    ("place", "name"), [(audit_secrets.Detector, "hits"), (audit_secrets, "_finding")], ids=["scanner", "report"]
)
def test_a_crash_shows_no_secret(repo, monkeypatch, place, name):
    key, other = openrouter(), openrouter()
    repo.commit(f"{other}.txt", key)

    def crash(*texts):
        raise RuntimeError(f"can't read {texts!r} {key}")

    monkeypatch.setattr(place, name, crash)
    with pytest.raises(AuditFailed) as caught:
        look(repo.folder)
    done = run(app, ["audit", "secrets", str(repo.folder)])
    assert done.exit_code == 1
    for text in (str(caught.value), done.output + str(done.exception)):
        assert key not in text
        assert other not in text
    assert "RuntimeError in test_audit_secrets.py, line " in done.stderr


def test_what_was_skipped_is_told_without_the_secret_in_its_name(repo, monkeypatch):
    key = openrouter()
    repo.write(f"{key}.zip", b"PK\x03\x04" + secrets.token_bytes(50))
    (words,) = look(repo.folder).skipped
    assert words == f"{masked(key)}.zip is no archive that can be opened; it was read as it is"


def test_a_secret_of_any_service_has_a_name_to_read(report):
    names = {each.kind.name for each in report.findings}
    assert {"Anthropic API key", "AWS access token", "GitHub PAT"} <= names


def test_without_the_scanner_the_command_says_how_to_get_it(repo, monkeypatch):
    audit_secrets._scanner.cache_clear()
    monkeypatch.setitem(sys.modules, "kingfisher_sdk", None)
    done = run(app, ["audit", "secrets", str(repo.folder)])
    assert (done.exit_code, "pip install 'oxherd[audit]'" in done.stderr) == (2, True)


def test_the_command_finds_accepts_and_is_content(repo, monkeypatch):
    repo.commit("a.py", f'KEY = "{openrouter()}"\n')
    (repo.folder / "deep").mkdir()
    monkeypatch.chdir(repo.folder / "deep")
    done = run(app, ["audit", "secrets", "--json"])
    assert done.exit_code == 1
    (found,) = json.loads(done.stdout)["findings"]
    assert run(app, ["audit", "accept", found["fingerprint"], "--reason", "a test's key", "--days", "5"]).exit_code == 0
    done = run(app, ["audit", "secrets"])
    assert done.exit_code == 0, done.output
    assert "a test's key" in done.stdout
    for name in ("r.html", "r.sarif", "r.json"):
        assert run(app, ["audit", "secrets", "--output", name]).exit_code == 0
        assert Path(name).stat().st_size


def test_a_hook_keeps_a_secret_out_of_a_commit(repo):
    hook = repo.folder / ".git" / "hooks" / "pre-commit"
    hook.write_text(f"#!/bin/sh\nexec {Path(sys.executable).parent}/oxherd audit secrets --staged\n")
    hook.chmod(0o755)
    repo.write("a.env", f"KEY={openrouter()}\n")
    repo.git("add", "-A")
    repo.git("commit", "-q", "-m", "Add a key", check=False)
    assert "Add a key" not in repo.git("log", "--format=%s")


def test_fingerprints_of_the_installation_are_written_for_those_who_have_the_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    token = secrets.token_hex(20)
    monkeypatch.setenv("API_TOKEN", token)
    assert run(app, ["audit", "fingerprints"]).exit_code == 2
    monkeypatch.setenv("AUDIT_KEY", base64.b64encode(secrets.token_bytes(32)).decode())
    assert run(app, ["audit", "fingerprints"]).exit_code == 0
    text = (tmp_path / ".oxherd-audit.toml").read_text()
    assert 'variable = "API_TOKEN"' in text
    assert token not in text


def test_a_masked_secret_shows_the_prefix_of_its_kind_and_its_length():
    assert masked("sk-or-v1-" + "a" * 64) == "sk-or-v1-… (73 characters)"
    assert masked("hunter2hunter2") == "… (14 characters)"


def test_every_rule_of_ours_says_whose_secret_it_finds():
    import re

    ids = re.findall(r"^    id: (\S+)", RULES.read_text(), re.MULTILINE)
    assert set(ids) <= set(KINDS)


def test_nothing_is_sent_anywhere_unless_it_is_asked_for(history, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the audit opened a connection")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    assert look(history.folder).failing
