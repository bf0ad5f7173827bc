"""Secrets that no command replaces, and what to do instead. Data only."""

from __future__ import annotations

_AWS = (
    "make a second access key for the same user in AWS (IAM), `oxherd env push` both of its variables, see that "
    "`oxherd backup doctor` passes, then deactivate the old key, and delete it after a day"
)
_COLLECTOR = (
    "make a new key at whoever takes your traces, `oxherd env push` it, see new traces arrive, then revoke the old key"
)

BY_HAND = {
    "ENCRYPTION_KEYS_PREVIOUS": (
        "`oxherd credentials rewrap`, then remove the old key from it with `oxherd env push`, once no job in the "
        "queue has a field that it sealed"
    ),
    "BACKUP_IDENTITY": (
        "`oxherd backup keygen` makes a new pair: put its public half into BACKUP_RECIPIENTS instead of the old "
        "one, and the secret half into BACKUP_IDENTITY before the old one; `oxherd backup create`, `oxherd backup"
        " verify latest`. Backups from before open with the old half for ever: where it has leaked, delete them "
        "from the bucket, then remove it"
    ),
    "AWS_ACCESS_KEY_ID": _AWS,
    "AWS_SECRET_ACCESS_KEY": _AWS,
    "AWS_SESSION_TOKEN": "it ends by itself within hours; where it has leaked, revoke the role's sessions in AWS (IAM)",
    "GOOGLE_SERVICE_ACCOUNT_KEY": (
        "make a second key for the same service account at Google (IAM), `oxherd env push` it, see that `oxherd "
        "backup doctor` passes, then delete the old key"
    ),
    "AZURE_STORAGE_ACCOUNT_KEY": (
        "switch to the account's other key: `oxherd env push` it, see that `oxherd backup doctor` passes, then "
        "have Azure rotate the first one"
    ),
    "AUDIT_KEY": (
        "`openssl rand -base64 32`; set it here and in CI, delete .oxherd-audit.toml, `oxherd audit "
        "fingerprints`, and accept again what may stay: fingerprints of the old key fit no longer"
    ),
    "ALERT_WEBHOOK_URL": (
        "give the receiver another address, `oxherd env push` it, `oxherd alerts test`, then close the old address"
    ),
    "ALERT_WEBHOOK_SECRET": (
        "`openssl rand -hex 32`; have the receiver accept the old and the new one, `oxherd env push` it, `oxherd "
        "alerts test`, then have it refuse the old one"
    ),
    "ALERT_SLACK_URL": (
        "add a second incoming webhook to the app at Slack, `oxherd env push` it, `oxherd alerts test`, then "
        "remove the first webhook"
    ),
    "ALERT_TELEGRAM_TOKEN": (
        "have @BotFather revoke it, which makes a new one; `oxherd env push` it at once, `oxherd alerts test`: "
        "until then no message arrives"
    ),
    "ALERT_SMTP_URL": (
        "make a second password at the mail service, `oxherd env push` it, `oxherd alerts test`, then revoke the first"
    ),
    "OTEL_EXPORTER_OTLP_HEADERS": _COLLECTOR,
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS": _COLLECTOR,
    "SENTRY_DSN": (
        "make a second client key in the project's settings at Sentry, `oxherd env push` its DSN, see an event "
        "arrive, then disable the first key"
    ),
    "REDIS_ADMIN_URL": (
        "no worker has it: as that user, `ACL SETUSER <user> '>new'` and `ACL SAVE` in redis-cli, set it where "
        "you work, then `ACL SETUSER <user> '<old'`"
    ),
    "DATABASE_ADMIN_URL": (
        "no worker has it: `\\password <role>` in psql, which has the old one refused at once; set it where you work"
    ),
}
