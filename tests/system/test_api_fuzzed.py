"""Schemathesis tries the API with whatever the published document allows, and with what it does not."""

from __future__ import annotations

import asyncio
import secrets
import sys
from pathlib import Path

from redis import Redis

SECONDS = 90.0  # about thirty are needed
OPTIONS = (
    "--phases", "examples,coverage,fuzzing", "--max-examples", "4", "--seed", "1", "--workers", "1", "--no-shrink",
    "--request-timeout", "20", "--suppress-health-check", "all", "--generation-database", "none",
    # Streams that do not end.
    "--exclude-path", "/api/v1/feed", "--exclude-path", "/api/v1/runs/{id}/events",
    # A few wrong tokens, and everybody from here has to wait; test_api.py tries who may do what.
    "--exclude-path", "/api/v1/session", "--exclude-checks", "ignored_auth,positive_data_acceptance",
)  # fmt: skip
# positive_data_acceptance: what no schema can say is refused all the same, such as a cursor that no list gave, a cron
# pattern that is none, or two ways of choosing dead letters at once.


async def test_schemathesis_finds_nothing(start_web, tmp_path: Path, witness: Redis):
    token = secrets.token_hex(16)
    port = await start_web(API_TOKEN=token)
    command = Path(sys.executable).parent / "schemathesis"
    process = await asyncio.create_subprocess_exec(
        str(command), "run", f"http://127.0.0.1:{port}/api/openapi.json",
        "-H", f"Authorization: Bearer {token}", *OPTIONS,
        cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(SECONDS):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, said.decode()[-6000:]
