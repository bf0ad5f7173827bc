"""The worker on Railway, as code: `railway config plan` shows what would change, `railway config apply` does it.

Railway's tool imports this file and calls `main`. It needs no package; the dict is the form that tool reads.
"""

from __future__ import annotations

from typing import Any

REPOSITORY = "your-organisation/your-worker"  # the GitHub repository Railway builds from
BRANCH = "main"

# Railway kills a container at once when draining is 0, which is its default. The worker hands running jobs back
# SHUTDOWN_GRACE (25 s) after SIGTERM; the rest is for that hand-back.
DRAINING_SECONDS = 45
# Both deployments serve the same queue for a moment, so none of its jobs waits for the switch.
OVERLAP_SECONDS = 5
HEALTHCHECK_SECONDS = 120

# Set once in the dashboard or with `railway variables`; this file keeps them as they are.
KEPT = (
    "REDIS_URL",
    "DATABASE_URL",
    "SUPABASE_URL",
    "SUPABASE_SERVICE_ROLE_KEY",
    "ENCRYPTION_KEY",
    "ENCRYPTION_KEYS_PREVIOUS",
    "OPENROUTER_API_KEY",
    "API_TOKEN",
    "API_READ_TOKEN",
    "SENTRY_DSN",
    "SENTRY_AUTH_TOKEN",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "ALERT_WEBHOOK_URL",
    "ALERT_WEBHOOK_SECRET",
    "ALERT_SLACK_URL",
    "ALERT_TELEGRAM_TOKEN",
    "ALERT_SMTP_URL",
    "BACKUP_IDENTITY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AUDIT_KEY",
    "RAILWAY_TOKEN",
    "RAILWAY_API_TOKEN",
    "OPENROUTER_MANAGEMENT_KEY",
    "SUPABASE_ACCESS_TOKEN",
    "UPSTASH_API_KEY",
    "REDIS_ADMIN_URL",
    "DATABASE_ADMIN_URL",
)

# The same three as variables: `railway config migrate` drops the settings, and variables win over them.
REPEATED = {
    "RAILWAY_DEPLOYMENT_DRAINING_SECONDS": DRAINING_SECONDS,
    "RAILWAY_DEPLOYMENT_OVERLAP_SECONDS": OVERLAP_SECONDS,
    "RAILWAY_HEALTHCHECK_TIMEOUT_SEC": HEALTHCHECK_SECONDS,
}


def main(context: object = None) -> dict[str, Any]:  # noqa: ARG001 - Railway passes the environment's facts
    """The project: one service, built from the Dockerfile."""
    literals = {name: {"type": "literal", "value": str(value)} for name, value in REPEATED.items()}
    kept = {name: {"type": "preserve"} for name in KEPT}
    worker = {
        "address": "service.worker",
        "type": "service",
        "kind": "github",
        "name": "worker",
        "source": {"type": "github", "repo": REPOSITORY, "branch": BRANCH},
        "build": {"builder": "DOCKERFILE", "dockerfilePath": "Dockerfile"},
        "deploy": {
            "numReplicas": 1,
            "healthcheckPath": "/health",
            "healthcheckTimeout": HEALTHCHECK_SECONDS,
            "restartPolicyType": "ON_FAILURE",
            "restartPolicyMaxRetries": 10,
            "drainingSeconds": DRAINING_SECONDS,
            "overlapSeconds": OVERLAP_SECONDS,
        },
        "variables": literals | kept,
    }
    return {"name": "oxherd", "resources": [worker]}
