"""(g) What does a worker with nothing to do ask of Redis? Hosted Redis bills per command.

Commands are counted with MONITOR, those inside Lua scripts left out, as hosted Redis bills them. All
contestants idle at the same time, each on a Valkey of its own.
"""

import contextlib
import re
import select
import time
from collections import Counter
from dataclasses import dataclass, field

from contestants import Contestant
from engines import Client, enqueue
from processes import ANY_CORE
from report import Answer, Rounds, say
from rig import Worker, rig

CONCURRENCY = 5
WARM_UP = 15
LINE = re.compile(rb'^\+\d+\.\d+ \[\d+ (\S+)\] "([^"]*)"')


@dataclass(slots=True)
class Listener:
    """One MONITOR connection and what it heard."""

    worker: Worker
    client: Client
    cpu_before: float
    commands: Counter[str] = field(default_factory=Counter)
    rest: bytes = b""

    def read(self) -> None:
        *lines, self.rest = (self.rest + self.client.socket.recv(1 << 16)).split(b"\r\n")
        for line in lines:
            if (found := LINE.match(line)) and found[1] != b"lua":
                self.commands[found[2].decode().upper()] += 1


def measure(contestants: list[Contestant], rounds: int, *, quick: bool) -> Answer:
    del rounds
    window = 60 if quick else 300
    results = Rounds("idle worker")
    with contextlib.ExitStack() as stack:
        workers = {}
        for contestant in contestants:
            with results.attempt(contestant.name, 0):
                built = stack.enter_context(rig(contestant))
                worker = built.start(CONCURRENCY, cores=ANY_CORE)
                enqueue(contestant, built.valkey, 1)
                worker.wait(lambda counts: counts.done > 0, 30, "first job")
                workers[contestant.name] = (worker, built.valkey.port)
                say("up")
        time.sleep(WARM_UP)
        listeners = {name: listen(worker, port) for name, (worker, port) in workers.items()}
        collect(list(listeners.values()), window)
        for name, listener in listeners.items():
            with results.attempt(name, 0):
                results.add(name, summed_up(listener, window))
    return {"idle": results.medians()}


def listen(worker: Worker, port: int) -> Listener:
    client = Client(port)
    client.call("MONITOR")
    return Listener(worker, client, worker.process.cpu_seconds())


def collect(listeners: list[Listener], window: float) -> None:
    by_socket = {listener.client.socket: listener for listener in listeners}
    deadline = time.monotonic() + window
    while (left := deadline - time.monotonic()) > 0:
        for ready in select.select(by_socket, [], [], left)[0]:
            by_socket[ready].read()


def summed_up(listener: Listener, window: float) -> dict[str, float | str]:
    listener.worker.process.check()
    hours = window / 3600
    cpu = listener.worker.process.cpu_seconds() - listener.cpu_before
    top = ", ".join(f"{name} {count}" for name, count in listener.commands.most_common(4))
    total = listener.commands.total()
    say(f"{total / hours:,.0f} commands/h ({top} in {window:.0f} s)")
    listener.client.close()
    return {"commands_per_hour": total / hours, "cpu_s_per_hour": cpu / hours, "seen": top, "window_s": window}
