"""Make, or change, the schedule: every night at three in Berlin. `python schedule.py now` makes it every minute."""

from __future__ import annotations

import asyncio
import sys

from oxherd import settings
from oxherd.app import queue_client
from oxherd.queue.producer import NewJob
from oxherd.queue.schedule import Repeat

NIGHT = Repeat(pattern="0 3 * * *", tz="Europe/Berlin")
MINUTE = Repeat(every=60_000)
REPORT = NewJob("report.nightly", {"regions": ["eu", "us", "asia"]}, {"attempts": 3, "removeOnComplete": 30})


async def main() -> None:
    async with queue_client(settings.load()) as (producer, _):
        print(await producer.schedule("nightly-report", MINUTE if sys.argv[1:] == ["now"] else NIGHT, REPORT))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main())
