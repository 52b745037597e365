"""Thousands of simulated agents on one server, or on two: connected, busy, idle; and the plan alone."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg

import geres
from bench.place import TRUE, Place
from bench.report import Row
from geres.model.demand import Demand
from geres.scheduling.plan import Want, plan
from geres.scheduling.rooms import Facts, Room, empty_room
from tests.cluster import GERES, clean_environment, free_port
from tests.postgres import PostgresServer, die_with_parent

_CLIENTS = 2  #: processes that the agents are spread over
_WAIT_SECONDS = 1800.0
_IDLE_SECONDS = 20.0
_IDLE_NODES = 1000
_DESCRIPTORS_BESIDE = 500
_SETTLE_SECONDS = 5.0


class Servers:
    """Servers on one store, without nodes of their own."""

    def __init__(self, folder: Path, store: str, count: int) -> None:
        self._ports = [free_port() for _ in range(count)]
        self._homes = [folder / f"server{number}" for number in range(count)]
        self.processes = []
        for port, home in zip(self._ports, self._homes, strict=True):
            home.mkdir(parents=True)
            with open(home / "log", "ab") as log:
                words = [str(GERES), "server", "--home", str(home), "--port", str(port), "--store", store]
                self.processes.append(
                    subprocess.Popen(
                        words,
                        env=clean_environment(home),
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        preexec_fn=die_with_parent,
                    )
                )
        for home, process in zip(self._homes, self.processes, strict=True):
            while not (home / "address.json").exists():
                assert process.poll() is None, (home / "log").read_text()
                time.sleep(0.05)

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self._ports]

    def token(self, name: str = "token") -> str:
        return (self._homes[0] / name).read_text().strip()

    def client(self) -> geres.Client:
        return geres.Client(url=self.urls[0], token=self.token())

    def cpu_seconds(self) -> float:
        times = [psutil.Process(process.pid).cpu_times() for process in self.processes]
        return sum(one.user + one.system for one in times)

    def memory_bytes(self) -> int:
        return max(psutil.Process(process.pid).memory_info().rss for process in self.processes)

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def fleet(place: Place) -> Iterator[Row]:
    """All connected, tasks a second, memory and idle cost of one server; two against one; the plan alone."""
    _allow_descriptors(place.fleet_nodes)
    yield from plans(place)
    for store in place.stores:
        with servers_on(store, 1) as (servers, url):
            yield from _idle(servers, place, store)
            yield from _load(servers, place, store, url)
    if "postgres" in place.stores:
        yield _two_against_one(place)


def plans(place: Place) -> Iterator[Row]:
    """Time to plan the starts of one turn, for more and more nodes that are all alike but for their names."""
    wants = [Want(number, Demand()) for number in range(1000)]
    for count in (100, 1000, 10_000):
        rooms = [_room(number) for number in range(count)]
        times = []
        for _ in range(3 if place.short else 7):
            fresh = [room.copy() for room in rooms]
            begun = time.perf_counter()
            plan(wants, fresh, "pack")
            times.append(time.perf_counter() - begun)
        note = "1,000 tasks in one turn"
        yield Row(
            name=f"plan, {count:,} nodes", bar="", figure=min(times) * 1000, unit="ms a turn", note=note
        )


def _room(number: int) -> Room:
    facts = Facts(
        name=f"n{number}",
        pool="default",
        arch="x86_64",
        os="linux",
        host=f"n{number}",
        host_id=f"n{number}",
        cpus_milli=4000,
        memory_bytes=8 << 30,
        gpus=0,
        counts=(),
        labels=(),
        shared_paths=(),
        slots=0,
    )
    return empty_room(number, facts)


def _idle(servers: Servers, place: Place, store: str) -> Iterator[Row]:
    count = min(_IDLE_NODES, place.fleet_nodes)
    with agents(servers, count):
        time.sleep(_SETTLE_SECONDS)
        before, begun = servers.cpu_seconds(), time.monotonic()
        time.sleep(_SETTLE_SECONDS if place.short else _IDLE_SECONDS)
        percent = 100.0 * (servers.cpu_seconds() - before) / (time.monotonic() - begun)
    yield Row(
        name=f"{count:,} idle agents",
        store=store,
        bar="< 5 % of a core",
        figure=percent,
        unit="%",
        passed=percent < 5.0,
    )


def _load(servers: Servers, place: Place, store: str, url: str) -> Iterator[Row]:
    nodes, tasks = place.fleet_nodes, place.fleet_tasks
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.enter_context(agents(servers, nodes))
        seconds = time.monotonic() - begun
        connected = sum(node.connected for node in servers.client().nodes())
        yield Row(
            name=f"{nodes:,} agents connect",
            store=store,
            bar="all",
            figure=float(connected),
            passed=connected >= nodes,
            note=f"in {seconds:.0f} s",
        )
        age = 0.0
        if place.snapshot_seconds and store == "postgres":
            age = _age_a_snapshot(stack, servers, place, url)
        rate = _rate(servers, tasks)
    yield Row(
        name=f"{tasks:,} tasks on {nodes:,} agents",
        store=store,
        bar=">= 2,000/s",
        figure=rate,
        unit="/s",
        passed=rate >= 2000,
        note=f"beside a snapshot {age:.0f} s old" if age else "",
    )
    memory = servers.memory_bytes() / (1 << 20)
    yield Row(
        name="memory of that server",
        store=store,
        bar="<= 2,048 MiB",
        figure=memory,
        unit="MiB",
        passed=memory <= 2048,
    )


def _age_a_snapshot(stack: contextlib.ExitStack, servers: Servers, place: Place, url: str) -> float:
    """Hold a snapshot open, and work until it is as old as asked: nothing is vacuumed meanwhile."""
    connection = stack.enter_context(psycopg.connect(url))
    connection.execute("SET idle_in_transaction_session_timeout = 0")
    connection.commit()
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    connection.execute("SELECT count(*) FROM task")
    begun = time.monotonic()
    while time.monotonic() - begun < place.snapshot_seconds:
        _rate(servers, max(1000, place.fleet_tasks // 10))
    return time.monotonic() - begun


def _rate(servers: Servers, count: int) -> float:
    """Tasks a second, from the submit of an array until all have ended."""
    client = servers.client()
    try:
        begun = time.perf_counter()
        client.submit_array(TRUE, range=f"1-{count}").wait(timeout=_WAIT_SECONDS, check=True)
        return count / (time.perf_counter() - begun)
    finally:
        client.close()


def _two_against_one(place: Place) -> Row:
    nodes, tasks = min(place.fleet_nodes, 1000), place.fleet_tasks
    rates = []
    for count in (1, 2):
        with servers_on("postgres", count) as (servers, _), agents(servers, nodes):
            _rate(servers, max(1000, tasks // 10))
            rates.append(_rate(servers, tasks))
    return Row(
        name="two servers against one",
        store="postgres",
        bar="> 1.00 of one",
        figure=rates[1],
        unit="/s",
        floor=rates[0],
        ratio=rates[1] / rates[0],
        passed=rates[1] > rates[0],
        note=f"{nodes:,} agents; floor: one server",
    )


@contextlib.contextmanager
def servers_on(store: str, count: int) -> Iterator[tuple[Servers, str]]:
    """Servers on a fresh store, and the store's URL."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="geres-bench-")))
        url = f"sqlite:{folder / 'geres.db'}"
        if store == "postgres":
            postgres = PostgresServer()
            stack.callback(postgres.stop)
            url = stack.enter_context(postgres.fresh())
        servers = Servers(folder, url, count)
        stack.callback(servers.stop)
        yield servers, url


@contextlib.contextmanager
def agents(servers: Servers, count: int) -> Iterator[None]:
    """Agents spread over the servers, all connected."""
    token = servers.token("agent.token")
    parts, first = [], 0
    for number in range(_CLIENTS):
        url = servers.urls[number % len(servers.urls)]
        share = count // _CLIENTS + (number < count % _CLIENTS)
        words = [sys.executable, "-m", "bench.agents", url, token, str(first), str(share)]
        parts.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        first += share
    try:
        for part in parts:
            assert part.stdout is not None
            said = part.stdout.readline()
            assert said == "connected\n", f"the agents ended: {said!r}"
        yield
    finally:
        for part in parts:
            part.kill()
            part.communicate()


def _allow_descriptors(nodes: int) -> None:
    """Children inherit what this process may open.  Raises ValueError where the machine allows too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = nodes + _DESCRIPTORS_BESIDE
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ValueError(f"{nodes:,} agents need {wanted:,} open files, {hard:,} are allowed: see ulimit -Hn")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
