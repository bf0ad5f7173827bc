import base64
import copy
import dataclasses
import json
import logging
import pickle
import re
import secrets
import traceback

import orjson
import pytest
from pydantic import BaseModel, ConfigDict

from oxherd import codec, settings
from oxherd.errors import SettingsError
from oxherd.settings import TABLE, Secret, parse_duration, parse_key, parse_redis_url

KEY = base64.b64encode(bytes(range(32))).decode()
OLD_KEY = base64.b64encode(bytes(32)).decode()

# One good and one bad value per row; None where no text is wrong.
VALUES = {
    "REDIS_URL": ("redis://:hidden-one@localhost:6379/1", "http://hidden-one"),
    "DATABASE_URL": ("postgresql://user:hidden-two@localhost/app", "mysql://hidden-two"),
    "SUPABASE_URL": ("https://abc.supabase.co/", "abc.supabase.co"),
    "SUPABASE_SERVICE_ROLE_KEY": ("hidden-three", None),
    "ENCRYPTION_KEY": (KEY, "hidden-four"),
    "ENCRYPTION_KEYS_PREVIOUS": (f"{OLD_KEY}, {KEY}", f"{KEY},hidden-six"),
    "OPENROUTER_API_KEY": ("hidden-five", None),
    "OPENROUTER_BASE_URL": ("http://localhost:8000/v1", "localhost:8000"),
    "BUDGET_DAILY_USD": ("20", "-1"),
    "BUDGET_TENANT_DAILY_USD": ("0.50", "a lot"),
    "BUDGET_AGENT_DAILY_USD": ("0", "NaN"),
    "JOB_QUEUE_NAME": ("agent-jobs", "agent:jobs"),
    "JOB_QUEUE_PREFIX": ("{bull}", None),
    "JOB_CONCURRENCY": ("100", "many"),
    "JOB_TENANT_TURNS": ("on", "maybe"),
    "JOB_TENANT_CONCURRENCY": ("3", "few"),
    "JOB_TIMEOUT": ("1.5m", "soon"),
    "JOB_IDLE_TIMEOUT": ("250ms", "-1"),
    "APPROVAL_TIMEOUT": ("3d", "a day"),
    "PUBLIC_URL": ("https://oxherd.example.com/", "oxherd.example.com"),
    "JOB_CRASH_LIMIT": ("0", "101"),
    "SHUTDOWN_GRACE": ("2h", "1 week"),
    "PORT": ("0", "65536"),
    "HOST": ("::", None),
    "API_TOKEN": ("hidden-token-0123", "too-short"),
    "API_READ_TOKEN": ("hidden-reads-0123", "with a space in it"),
    "LOG_LEVEL": ("WARNING", "loud"),
    "LOG_FORMAT": ("json", "xml"),
    "BACKUP_URL": ("s3://bucket/oxherd", "ftp://bucket"),
    "BACKUP_RECIPIENTS": ("age1one, ssh-ed25519 two", None),
    "BACKUP_IDENTITY": ("hidden-identity,hidden-older", None),
    "BACKUP_SCHEMAS": ("public,oxherd", None),
    "BACKUP_SPOOL": ("/var/spool/oxherd", None),
    "BACKUP_PGBACKREST_STANZA": ("main", None),
    "AWS_ACCESS_KEY_ID": ("hidden-id", None),
    "AWS_SECRET_ACCESS_KEY": ("hidden-aws", None),
    "AWS_SESSION_TOKEN": ("hidden-session", None),
    "AWS_REGION": ("auto", None),
    "AWS_ENDPOINT_URL": ("https://r2.example.com", "r2.example.com"),
    "GOOGLE_SERVICE_ACCOUNT_KEY": ('{"private_key": "hidden-google"}', None),
    "AZURE_STORAGE_ACCOUNT_NAME": ("backups", None),
    "AZURE_STORAGE_ACCOUNT_KEY": ("hidden-azure", None),
    "AUDIT_KEY": (OLD_KEY, "hidden-audit"),
    "SENTRY_AUTH_TOKEN": ("hidden-sentry", None),
    "SENTRY_ORG": ("acme", None),
    "SENTRY_PROJECT": ("worker", None),
    "SENTRY_URL": ("https://de.sentry.io", "de.sentry.io"),
    "OXHERD_CONFIG": ("conf/oxherd.toml", None),
    "ALERT_WEBHOOK_URL": ("https://example.com/hidden-hook", "example.com/hidden-hook"),
    "ALERT_WEBHOOK_SECRET": (f"whsec_{KEY}", "whsec_hidden!"),
    "ALERT_SLACK_URL": ("https://example.com/hidden-slack", "example.com/hidden-slack"),
    "ALERT_TELEGRAM_TOKEN": ("123:hidden-bot", None),
    "ALERT_TELEGRAM_CHAT": ("@ops", None),
    "ALERT_SMTP_URL": ("smtps://ops:hidden-mail@smtp.example.com", "https://hidden-mail@smtp.example.com"),
    "ALERT_EMAIL_TO": ("ops@example.com, b@example.com", "hidden people"),
    "ALERT_EMAIL_FROM": ("oxherd@example.com", None),
    "RUNBOOKS_URL": ("https://example.com/runbooks", None),
    "OTEL_EXPORTER_OTLP_ENDPOINT": ("http://collector:4318", "collector:4318"),
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ("http://collector:4318/v1/traces", "ftp://collector"),
    "OTEL_EXPORTER_OTLP_HEADERS": ("x-key=hidden%20otel,x-team=hidden-team", None),
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS": ("x-key=hidden-traces", None),
    "OTEL_SDK_DISABLED": ("true", "yes"),
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": ("true", "all"),
    "SENTRY_DSN": ("https://hidden-key@sentry.example.com/1", "hidden-key@sentry"),
    "SENTRY_TRACES_SAMPLE_RATE": ("0.25", "25"),
    "SENTRY_ENVIRONMENT": ("staging", None),
    "SENTRY_RELEASE": ("app@1.2", None),
    "OPENROUTER_MANAGEMENT_KEY": ("hidden-management", None),
    "SUPABASE_ACCESS_TOKEN": ("sbp_hidden", None),
    "SUPABASE_PROJECT_REF": ("abcdefghijklmnopqrst", None),
    "SUPABASE_API_URL": ("http://localhost:9", "localhost:9"),
    "UPSTASH_EMAIL": ("ops@example.com", None),
    "UPSTASH_API_KEY": ("hidden-upstash", None),
    "UPSTASH_API_URL": ("http://localhost:9/v2", "localhost:9"),
    "REDIS_ADMIN_URL": ("redis://admin:hidden-redis-admin@localhost", "localhost:6379"),
    "DATABASE_ADMIN_URL": ("postgresql://admin:hidden-admin@localhost/app", "mysql://localhost"),
    "RAILWAY_TOKEN": ("hidden-railway", None),
    "RAILWAY_API_TOKEN": ("hidden-account", None),
    "RAILWAY_PROJECT_ID": ("herd", None),
    "RAILWAY_ENVIRONMENT_ID": ("production", None),
    "RAILWAY_SERVICE_ID": ("worker", None),
    "RAILWAY_API_URL": ("http://localhost:9/graphql/v2", "localhost:9"),
    "NOTIFY_SOCKET": ("/run/systemd/notify", None),
    "WATCHDOG_USEC": ("30000000", "soon"),
    "RAILWAY_ENVIRONMENT_NAME": ("production", None),
    "RAILWAY_GIT_COMMIT_SHA": ("0123abc", None),
    "RAILWAY_PUBLIC_DOMAIN": ("worker.up.railway.app", None),
}
GOOD = {name: good for name, (good, _) in VALUES.items()}
BAD = {name: bad for name, (_, bad) in VALUES.items() if bad is not None}


def faults(environ, **kwargs):
    with pytest.raises(SettingsError) as caught:
        settings.load(environ, **kwargs)
    return caught.value.faults


def test_every_row_of_the_table_is_tried_here():
    assert [variable.name for variable in TABLE] == list(VALUES)


def test_every_row_of_the_table_has_its_attribute():
    names = [field.name for field in dataclasses.fields(settings.Settings)]
    assert names == [variable.name.lower() for variable in TABLE]


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ({"PUBLIC_URL": "https://a.example/"}, "https://a.example"),
        ({"RAILWAY_PUBLIC_DOMAIN": "b.up.railway.app"}, "https://b.up.railway.app"),
        ({"PUBLIC_URL": "https://a.example", "RAILWAY_PUBLIC_DOMAIN": "b.up.railway.app"}, "https://a.example"),
        ({}, None),
    ],
)
def test_people_reach_the_worker_where_it_is_told_or_where_railway_says(given, known):
    assert settings.load({"REDIS_URL": "redis://localhost"} | given).reached_at == known


def test_good_values_are_parsed():
    loaded = settings.load(GOOD, needs=("REDIS_URL", "STORE"))
    assert loaded.redis_url.db == 1
    assert loaded.database_url.reveal() == GOOD["DATABASE_URL"]
    assert loaded.supabase_url == "https://abc.supabase.co"
    assert loaded.encryption_key.reveal() == KEY
    assert loaded.job_queue_prefix == "{bull}"
    assert (loaded.job_concurrency, loaded.job_crash_limit, loaded.port) == (100, 0, 0)
    assert (loaded.job_timeout, loaded.job_idle_timeout, loaded.shutdown_grace) == (90.0, 0.25, 7200.0)
    assert (loaded.host, loaded.log_level, loaded.log_format) == ("::", "warning", "json")
    assert loaded.railway_git_commit_sha == "0123abc"


def test_unset_empty_and_blank_variables_mean_the_default():
    for environ in ({}, dict.fromkeys(VALUES, ""), dict.fromkeys(VALUES, "  ")):
        loaded = settings.load(environ, needs=())
        assert loaded.redis_url is None
        assert not loaded.has_store
        assert (loaded.job_queue_name, loaded.job_queue_prefix) == ("agent-jobs", "bull")
        assert (loaded.job_concurrency, loaded.job_timeout, loaded.job_idle_timeout) == (5, 900.0, 0.0)
        assert (loaded.port, loaded.host, loaded.log_level, loaded.log_format) == (
            8080,
            "0.0.0.0",
            "info",
            "auto",
        )
        assert loaded.openrouter_base_url == "https://openrouter.ai/api/v1"


def test_every_default_is_a_value_that_its_row_accepts():
    for variable in TABLE:
        if variable.default is not None:
            variable.parse(variable.default)


def test_every_example_is_a_value_that_its_row_accepts():
    for variable in TABLE:
        if variable.example:
            variable.parse(variable.example)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_refused_by_name_and_without_the_value(name):
    (fault,) = faults(GOOD | {name: BAD[name]})
    assert fault.startswith(f"{name} must ")
    assert BAD[name] not in fault
    assert f"got {len(BAD[name])} characters" in fault


def test_all_faults_are_reported_at_once():
    assert [fault.split()[0] for fault in faults(BAD)] == list(BAD)


def test_no_fault_shows_a_value_of_any_variable():
    poison = {name: f"pois{index}on://not-to-be-shown" for index, name in enumerate(VALUES)}
    text = "\n".join(faults(poison))
    assert "pois" not in text
    assert "not-to-be-shown" not in text


def test_what_is_missing_is_reported_with_what_is_malformed():
    found = faults({"PORT": "x"}, needs=("REDIS_URL", "STORE", "OPENROUTER_API_KEY"))
    assert [fault.split()[0] for fault in found] == [
        "PORT",
        "REDIS_URL",
        "OPENROUTER_API_KEY",
        "DATABASE_URL",
    ]
    assert "--no-store" in found[-1]


def test_every_previous_key_that_is_none_is_named_by_its_place_and_without_its_value():
    short = base64.b64encode(b"sixteen bytes ok").decode()
    (fault,) = faults(GOOD | {"ENCRYPTION_KEYS_PREVIOUS": f"{OLD_KEY},{short},,no key at all"})
    assert fault.startswith(
        "ENCRYPTION_KEYS_PREVIOUS must hold keys only: key 2 of 3 must be base64 of 32 bytes, this is 16; make one "
        "with: openssl rand -base64 32; key 3 of 3 must be base64; make one with: openssl rand -base64 32 (got "
    )
    assert short not in fault


def test_previous_keys_are_a_fault_where_there_is_no_key_now():
    (fault,) = faults({"ENCRYPTION_KEYS_PREVIOUS": KEY}, needs=())
    assert fault.startswith("ENCRYPTION_KEY is missing")
    assert settings.load({}, needs=()).encryption_keys_previous == ()


def test_previous_keys_are_secrets():
    loaded = settings.load(GOOD)
    assert [key.reveal() for key in loaded.encryption_keys_previous] == [OLD_KEY, KEY]
    assert OLD_KEY in [secret.reveal() for secret in loaded.secrets]
    assert OLD_KEY not in repr(loaded)


def test_a_limit_for_tenants_needs_turns():
    (fault,) = faults({"JOB_TENANT_CONCURRENCY": "3", "JOB_TENANT_TURNS": "off"}, needs=())
    assert fault.startswith("JOB_TENANT_TURNS must be on")
    assert settings.load({"JOB_TENANT_TURNS": "off"}, needs=()).job_tenant_concurrency == 0


def test_either_database_will_do():
    rest = {"SUPABASE_URL": "https://a.supabase.co", "SUPABASE_SERVICE_ROLE_KEY": "k"}
    for environ in (rest, {"DATABASE_URL": "postgres://localhost/app"}):
        assert settings.load(environ, needs=("STORE",)).has_store


def test_supabase_without_its_key_is_a_fault():
    (fault,) = faults({"SUPABASE_URL": "https://a.supabase.co"}, needs=("STORE",))
    assert fault.startswith("SUPABASE_SERVICE_ROLE_KEY is missing")


def test_a_malformed_database_url_is_one_fault_and_not_two():
    (fault,) = faults({"SUPABASE_URL": "https://a.supabase.co", "DATABASE_URL": "x"}, needs=("STORE",))
    assert fault.startswith("DATABASE_URL must begin")


def test_the_error_counts_and_lists_its_faults():
    error = SettingsError(["A is wrong", "B is wrong"])
    assert str(error) == "2 variables are missing or malformed:\n  - A is wrong\n  - B is wrong"
    assert error.exit_code == 2


REDIS_URLS = {
    "redis://localhost": ("localhost", 6379, None, 0, None, None, False),
    "redis://localhost:6380": ("localhost", 6380, None, 0, None, None, False),
    "redis://localhost:6379/": ("localhost", 6379, None, 0, None, None, False),
    "REDIS://Localhost:6379/2": ("localhost", 6379, None, 2, None, None, False),
    "redis://localhost?db=3": ("localhost", 6379, None, 3, None, None, False),
    "redis://localhost/4?db=3": ("localhost", 6379, None, 4, None, None, False),
    "rediss://h.upstash.io:6379": ("h.upstash.io", 6379, None, 0, None, None, True),
    "redis://:pw@h:1/0": ("h", 1, None, 0, None, "pw", False),
    "redis://default:pw@h:1": ("h", 1, None, 0, "default", "pw", False),
    "redis://user@h": ("h", 6379, None, 0, "user", None, False),
    "redis://u%40x:p%40s%3As%2Fw%23%25@h": ("h", 6379, None, 0, "u@x", "p@s:s/w#%", False),
    "redis://u:p@s:s/w#?&+ä@h:7/1": ("h", 7, None, 1, "u", "p@s:s/w#?&+ä", False),
    "redis://[::1]:6380/1": ("::1", 6380, None, 1, None, None, False),
    "rediss://:pw@[2001:db8::7]": ("2001:db8::7", 6379, None, 0, None, "pw", True),
    "unix:///run/redis.sock": ("", 0, "/run/redis.sock", 0, None, None, False),
    "unix:///run/redis.sock?db=5": ("", 0, "/run/redis.sock", 5, None, None, False),
    "unix://:pw@/run/redis.sock": ("", 0, "/run/redis.sock", 0, None, "pw", False),
    "unix://u:p%20w@/run/a%20b.sock?db=1": ("", 0, "/run/a b.sock", 1, "u", "p w", False),
}


@pytest.mark.parametrize(("url", "wanted"), REDIS_URLS.items(), ids=REDIS_URLS)
def test_redis_urls_of_all_forms_are_understood(url, wanted):
    target = parse_redis_url(url)
    password = target.password.reveal() if target.password else None
    found = (target.host, target.port, target.path, target.db, target.username, password, target.tls)
    assert found == wanted


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://u:hidden@h:7/1", "redis://h:7/1"),
        ("rediss://:hidden@[::1]", "rediss://[::1]:6379/0"),
        ("unix://u:hidden@/run/r.sock?db=1", "unix:///run/r.sock?db=1"),
    ],
)
def test_a_redis_address_is_shown_without_its_login(url, shown):
    assert parse_redis_url(url).shown == shown
    assert "hidden" not in repr(parse_redis_url(url))


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://localhost",
        "redis:/localhost",
        "redis://",
        "redis:///0",
        "redis://hidden:hidden@:6379",
        "redis://hidden:hidden",  # the @host was forgotten: the password sits where the port should be
        "redis://h:99999",
        "redis://h:6379/hidden",
        "redis://h?db=-1",
        "redis://[hidden",
        "redis://[hidden]:6379",
        "redis://hidden\u2100hidden",  # urlsplit's own message would quote it
        "unix://run/redis.sock",
        "unix:///run/redis.sock?db=x",
    ],
)
def test_a_malformed_redis_url_is_refused_without_showing_any_of_it(url):
    with pytest.raises(ValueError) as caught:
        parse_redis_url(url)
    assert "hidden" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("90s", 90.0),
        ("1.5m", 90.0),
        ("2h", 7200.0),
        ("250ms", 0.25),
        ("1d", 86400.0),
        (" 5s ", 5.0),
    ],
)
def test_durations_of_all_units_are_understood(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "5 s", "-5s", "1e3", "5w", "1m30s", "infinity", "nan"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="such as 30s, 10m or 1h"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "not base64!", "äöü", base64.b64encode(bytes(31)).decode(), KEY[:-1]])
def test_a_key_that_is_not_32_bytes_is_refused_with_the_command_that_makes_one(text):
    with pytest.raises(ValueError, match="openssl rand -base64 32"):
        parse_key(text)


HIDDEN = "hunter-two-is-hidden"


class Model(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    typed: Secret
    text: str
    anything: object


@dataclasses.dataclass
class Holder:
    secret: Secret


def logged(secret):
    record = logging.LogRecord("x", 20, "x", 1, "the secret is %s %r", (secret, secret), None)
    return logging.Formatter().format(record)


def frames_of_a_failure(secret):
    try:
        raise RuntimeError(f"failed with {secret}")
    except RuntimeError as error:
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())


WAYS_OUT = {
    "str": str,
    "repr": repr,
    "f-string": lambda secret: f"{secret} {secret!s} {secret!r} {secret:>30}",
    "format": lambda secret: "{} {!r}".format(secret, secret),  # noqa: UP032
    "percent": lambda secret: "%s %r" % (secret, secret),  # noqa: UP031
    "concatenation": lambda secret: "a" + secret + "b",
    "join": lambda secret: ",".join(["a", secret]),  # noqa: FLY002
    "encode": lambda secret: secret.encode().decode(),
    "slice": lambda secret: secret[:],
    "inside a container": lambda secret: repr({"key": [secret]}),
    "json": json.dumps,
    "json inside": lambda secret: json.dumps({"key": secret}),
    "orjson": lambda secret: orjson.dumps({"key": secret}).decode(),
    "orjson dataclass": lambda secret: orjson.dumps(Holder(secret)).decode(),
    "our codec": lambda secret: codec.encode({"key": [secret], "held": Holder(secret)}).decode(),
    "dataclass": lambda secret: repr(Holder(secret)),
    "asdict": lambda secret: repr(dataclasses.asdict(Holder(secret))),
    "copy": lambda secret: repr([copy.copy(secret), copy.deepcopy(secret)]),
    "pydantic json": lambda secret: Model(typed=secret, text=secret, anything=secret).model_dump_json(),
    "pydantic repr": lambda secret: repr(Model(typed=secret, text=secret, anything=secret)),
    "logging": logged,
    "traceback with locals": frames_of_a_failure,
    "settings": lambda secret: repr(settings.load({"OPENROUTER_API_KEY": secret.reveal()}, needs=())),
}


@pytest.mark.parametrize("way", WAYS_OUT.values(), ids=WAYS_OUT)
def test_a_secret_shows_as_stars_whichever_way_it_leaves(way):
    shown = way(Secret(HIDDEN))
    assert HIDDEN not in shown
    assert "***" in shown


def test_a_secret_is_revealed_only_on_request():
    assert Secret(HIDDEN).reveal() == HIDDEN
    assert copy.deepcopy(Secret(HIDDEN)).reveal() == HIDDEN


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_refuses_to_be_pickled(protocol):
    with pytest.raises(TypeError, match="can't be pickled"):
        pickle.dumps(Secret(HIDDEN), protocol)


def test_a_secret_refuses_to_hand_out_its_state():
    with pytest.raises(TypeError, match="can't be pickled"):
        Secret(HIDDEN).__getstate__()
    assert not hasattr(Secret(HIDDEN), "__dict__")


def test_secrets_are_equal_by_value_and_never_equal_to_text():
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert Secret("a") != "***"
    assert Secret("\udcff") == Secret("\udcff")
    with pytest.raises(TypeError):
        hash(Secret("a"))


def test_the_settings_know_every_secret_in_them():
    loaded = settings.load(GOOD | {"DATABASE_URL": "postgresql://u:p%40ss-word@h/app"})
    revealed = {secret.reveal() for secret in loaded.secrets}
    assert revealed == {
        "hidden-one",
        "hidden-railway",
        "hidden-account",
        *("hidden-management", "sbp_hidden", "hidden-upstash", "hidden-redis-admin", "hidden-admin"),
        GOOD["DATABASE_ADMIN_URL"],
        "postgresql://u:p%40ss-word@h/app",
        "p%40ss-word",
        "p@ss-word",
        "hidden-three",
        KEY,
        OLD_KEY,
        *("hidden-identity", "hidden-older", "hidden-id", "hidden-aws", "hidden-session", "hidden-azure"),
        GOOD["GOOGLE_SERVICE_ACCOUNT_KEY"],
        "hidden-five",
        GOOD["API_TOKEN"],
        GOOD["API_READ_TOKEN"],
        *(GOOD[name] for name in GOOD if name.startswith("ALERT_") and "hidden" in GOOD[name]),
        GOOD["ALERT_WEBHOOK_SECRET"],
        "hidden-mail",
        "hidden-sentry",
        GOOD["OTEL_EXPORTER_OTLP_HEADERS"],
        GOOD["OTEL_EXPORTER_OTLP_TRACES_HEADERS"],
        *("hidden%20otel", "hidden otel", "hidden-team", "hidden-traces"),
        GOOD["SENTRY_DSN"],
    }


def test_settings_without_secrets_know_none():
    assert settings.load({}, needs=()).secrets == ()
    assert settings.load({"REDIS_URL": "redis://h"}).secrets == ()


def test_every_secret_row_of_the_table_is_hidden_in_the_settings():
    marked = {variable.name for variable in TABLE if variable.secret}
    random = {name: f"{GOOD[name]}" for name in marked} | {"OPENROUTER_API_KEY": secrets.token_hex()}
    shown = repr(settings.load(GOOD | random))
    assert not [name for name in marked if random[name] in shown]
    assert "hidden" not in shown


@pytest.mark.parametrize(
    ("name", "companion"), [("ALERT_TELEGRAM_TOKEN", "ALERT_TELEGRAM_CHAT"), ("ALERT_SMTP_URL", "ALERT_EMAIL_TO")]
)
def test_a_channel_that_lacks_its_half_is_told(name, companion):
    assert faults(GOOD | {companion: ""}) == [f"{companion} is missing; {name} needs it"]


def test_the_example_file_can_be_loaded_as_it_is():
    lines = [line for line in settings.env_example().splitlines() if line and not line.startswith("#")]
    loaded = settings.load(dict(line.split("=", 1) for line in lines), needs=("REDIS_URL", "STORE"))
    assert loaded.has_store


def test_the_example_file_names_every_variable_once():
    names = re.findall(r"^(?:# )?([A-Z_]+)=", settings.env_example(), re.MULTILINE)
    assert names == [variable.name for variable in TABLE]


def test_the_settings_page_has_a_row_for_every_variable():
    rows = re.findall(r"^\| `([A-Z_]+)` \|", settings.settings_page(), re.MULTILINE)
    assert rows == [variable.name for variable in TABLE]


def test_a_token_for_reading_needs_another_one_for_acting():
    token = secrets.token_hex()
    (fault,) = faults({"API_READ_TOKEN": token}, needs=())
    assert "API_TOKEN is missing" in fault
    (fault,) = faults({"API_READ_TOKEN": token, "API_TOKEN": token}, needs=())
    assert "must differ" in fault
