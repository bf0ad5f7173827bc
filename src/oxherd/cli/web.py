from __future__ import annotations

from oxherd.cli.worker import App

EXAMPLES = """\b
Examples:
  REDIS_URL=… DATABASE_URL=… API_TOKEN=… oxherd web
  curl -H "Authorization: Bearer $API_TOKEN" localhost:8080/api/v1/jobs?state=failed

GET /api/docs shows every endpoint. A worker serves the same, unless it should be kept off the network."""


def web(app: App = None) -> None:
    """Serve the HTTP API without a worker, until a signal stops it.

    Without API_TOKEN it answers this machine itself only. --app lets it list the agents of your program.
    """
    from oxherd import settings as variables

    settings = variables.load()

    from oxherd.app import listen_to_logs, load_herd, run_loop, serve_web

    herd = load_herd(app)
    listen_to_logs(settings)
    run_loop(serve_web(settings, herd))
