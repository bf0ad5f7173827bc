from __future__ import annotations

import asyncio
import socket

from oxherd.telemetry.events import WorkerDraining, WorkerStarted, emit
from oxherd.telemetry.systemd import Notifier

STARTED = {"queue": "q", "concurrency": 1, "version": "", "commit": "", "redis": "", "redis_version": "", "store": ""}


async def test_an_unhealthy_worker_says_nothing_until_it_is_well_or_drains(tmp_path):
    healthy = False
    heard: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.setblocking(False)
        loop.add_reader(ear, lambda: heard.put_nowait(ear.recv(256).decode()))
        asked = asyncio.Event()

        def well() -> bool:
            asked.set()
            return healthy

        stop = Notifier(str(tmp_path / "notify"), 0.03, well).start()
        try:
            emit(WorkerStarted(**STARTED, handlers=(), seconds=0.0))
            assert await heard.get() == "READY=1"
            await asked.wait()
            assert heard.empty()
            healthy = True
            assert await heard.get() == "WATCHDOG=1"
            healthy = False
            emit(WorkerDraining(reason="test", in_flight=0, grace_s=1.0))
            while (word := await heard.get()) == "WATCHDOG=1":
                pass
            assert word == "STOPPING=1"
            assert await heard.get() == "WATCHDOG=1"
        finally:
            stop()
            loop.remove_reader(ear)


async def test_a_socket_that_is_gone_does_not_harm_the_worker(tmp_path):
    stop = Notifier(str(tmp_path / "nobody"), None, lambda: True).start()
    emit(WorkerStarted(**STARTED, handlers=(), seconds=0.0))
    stop()
