"""The cases, and the goals of their results."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import linear_regression
from urllib.parse import urlencode
from uuid import UUID

from app.core.db.keyset import CursorSigner, binding_of
from benchmarks import seed
from benchmarks.lab import Lab, Site
from benchmarks.load import Load, Plan, Sending
from benchmarks.servers import ROOT, Server

RATE, P50, P99, CPU, FAILED = "requests/s", "p50 ms", "p99 ms", "CPU µs", "failed"
START, START_CPU, IMPORT = "start ms", "start CPU ms", "import ms"
FRESH, LOADED, GROWTH = "MB before", "MB after", "kB per 10,000"
LOGINS = "logins/s"

PAGE = 50
DEEP_PAGE = 20_000
CALLERS = range(1, 65)
ADMINISTRATOR = range(1)
USERS, ME, TOKEN = "/api/v1/users", "/api/v1/users/me", "/api/v1/auth/token"
_JSON = {"Content-Type": "application/json"}
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}

type Sample = dict[str, float]
type Contender = Callable[[float], Sample]


@dataclass(frozen=True)
class Goal:
    """The bound of a figure of the last contender: as a ratio to the first contender, or as a value."""

    figure: str
    bound: float
    aim: float | None = None
    at_most: bool = False
    is_ratio: bool = True


@dataclass(frozen=True)
class Case:
    """Contenders that take turns. Each is called with the length of its turn in seconds. The first one is the reference."""

    name: str
    title: str
    contenders: Callable[[Lab], dict[str, Contender]]
    goals: tuple[Goal, ...] = ()


def sample(load: Load, cpu_seconds: float) -> Sample:
    """Return the figures of one turn."""
    if load.failed:
        print(f"wrong response: {load.example or 'no response'}", file=sys.stderr)
    return {
        RATE: load.requests / load.seconds,
        P50: load.p50_ms,
        P99: load.p99_ms,
        CPU: cpu_seconds / max(1, load.requests) * 1e6,
        FAILED: load.failed,
    }


def send(server: Server, plan: Plan, *, connections: int, seconds: float, threads: int = 1) -> Sample:
    """Send requests to a server, and measure the CPU time it uses."""
    before = server.cpu_seconds()
    load = Sending(server.port, plan, connections=connections, seconds=seconds, threads=threads).result()
    return sample(load, server.cpu_seconds() - before)


def bearer(path: str, fragment: str, tokens: list[str]) -> Plan:
    """Read a path with each of these access tokens in turn."""
    return Plan(path, fragment, headers={"Authorization": "Bearer {value}"}, values=tokens)


def access_tokens(site: Site, numbers: range) -> list[str]:
    """Log accounts in for one turn, because access tokens expire soon."""
    return [caller.access_token for caller in site.callers(numbers)]


def tokens_for(lab: Lab, kind: str, numbers: range) -> list[str]:
    """Return access tokens for a server of this kind."""
    return lab.limit_tokens(numbers) if kind == "limit" else access_tokens(lab.site, numbers)


def livez(_lab: Lab, _kind: str) -> Plan:
    """Read `/livez`, the cheapest request."""
    return Plan("/livez", '"ok"')


def me(lab: Lab, kind: str) -> Plan:
    """Read the caller's account, as 64 callers in turn."""
    numbers = range(1, min(CALLERS.stop, lab.users))
    return bearer(ME, '@example.com","full_name":"User 0', tokens_for(lab, kind, numbers))


def first_page(lab: Lab, kind: str) -> Plan:
    """Read the first page of accounts."""
    return bearer(f"{USERS}?limit={PAGE}", seed.email(PAGE - 1), tokens_for(lab, kind, ADMINISTRATOR))


def login(_lab: Lab, _kind: str) -> Plan:
    """Log in, with one account for each connection."""
    form = urlencode({"grant_type": "password", "password": seed.PASSWORD, "username": ""})
    addresses = [seed.email(number) for number in range(1, 5)]
    return Plan(TOKEN, '"access_token":', method="POST", headers=_FORM, body=f"{form}{{value}}", values=addresses)


def refresh(lab: Lab, _kind: str) -> Plan:
    """Use refresh tokens. Each connection has its own chain of tokens."""
    form = urlencode({"grant_type": "refresh_token", "refresh_token": ""})
    chains = [caller.refresh_token for caller in lab.site.callers(range(1, 17))]
    return Plan(
        TOKEN,
        '"refresh_token":',
        method="POST",
        headers=_FORM,
        body=f"{form}{{value}}",
        values=chains,
        follow='"refresh_token":"([^"]+)"',
    )


def create(lab: Lab, _kind: str) -> Plan:
    """Create accounts. Each one enqueues a mail to its owner."""
    (token,) = access_tokens(lab.site, ADMINISTRATOR)
    body = f'{{"email":"new-{time.time_ns()}-{{number}}@example.com"}}'
    headers = {"Authorization": f"Bearer {token}", **_JSON}
    return Plan(USERS, '"email":"new-', method="POST", headers=headers, body=body, status=201)


def change(lab: Lab, _kind: str) -> Plan:
    """Change one account."""
    (token,) = access_tokens(lab.site, ADMINISTRATOR)
    target = f"{USERS}/{UUID(int=lab.users - 1)}"
    headers = {"Authorization": f"Bearer {token}", **_JSON}
    return Plan(target, '"full_name":"Name', method="PATCH", headers=headers, body='{"full_name":"Name {number}"}')


def compared(
    plan: Callable[[Lab, str], Plan], connections: int, *, threads: int = 1, has_limit: bool = True
) -> Callable[[Lab], dict[str, Contender]]:
    """Compare the application with the limit, or with another checkout if `--against` is given."""

    def contenders(lab: Lab) -> dict[str, Contender]:
        def contender(kind: str) -> Contender:
            def turn(seconds: float) -> Sample:
                prepared = plan(lab, kind)
                return send(lab.server(kind), prepared, connections=connections, seconds=seconds, threads=threads)

            return turn

        return {kind: contender(kind) for kind in kinds(lab, has_limit=has_limit)}

    return contenders


def kinds(lab: Lab, *, has_limit: bool = True) -> list[str]:
    """Return the kinds of servers that are compared."""
    reference = ["before"] if lab.against else ["limit"] if has_limit else []
    return [*reference, "application"]


def pages(lab: Lab) -> dict[str, Contender]:
    """Read the first page of the large table, and a page far from its start."""
    site = lab.large_site
    deep = min(DEEP_PAGE, site.rows // PAGE - 1)
    last = deep * PAGE - 1
    # The cursor is bound to the path and the sort order. With another binding, the response would be 400.
    cursor = CursorSigner(site.keys.derive("cursor")).encode(
        (seed.instant(last), UUID(int=last)), binding=binding_of(USERS, [("sort", "created_at")])
    )

    def page(query: dict[str, str], last_row: int) -> Contender:
        def turn(seconds: float) -> Sample:
            tokens = access_tokens(site, ADMINISTRATOR)
            plan = bearer(f"{USERS}?{urlencode(query)}", seed.email(last_row), tokens)
            return send(lab.server("large"), plan, connections=1, seconds=seconds)

        return turn

    first = {"limit": str(PAGE)}
    return {"page 1": page(first, PAGE - 1), f"page {deep + 1:,}": page(first | {"cursor": cursor}, last + PAGE)}


def livez_during_logins(lab: Lab) -> dict[str, Contender]:
    """Read `/livez` while four connections log in repeatedly."""

    def contender(kind: str) -> Contender:
        def turn(seconds: float) -> Sample:
            server = lab.server(kind)
            before = server.cpu_seconds()
            logins = Sending(server.port, login(lab, kind), connections=4, threads=4, seconds=seconds)
            load = Sending(server.port, livez(lab, kind), connections=1, seconds=seconds).result()
            login_load = logins.result()
            figures = sample(load, server.cpu_seconds() - before)
            return figures | {LOGINS: login_load.requests / login_load.seconds, FAILED: load.failed + login_load.failed}

        return turn

    return {kind: contender(kind) for kind in kinds(lab)}


def logins_against_bcrypt(lab: Lab) -> dict[str, Contender]:
    """Compare logins with bcrypt alone, on the same core."""

    def bcrypt(seconds: float) -> Sample:
        core = ",".join(map(str, lab.cores.server))
        command = ["taskset", "--cpu-list", core, sys.executable, "-m", "benchmarks.hashing", str(seconds), "4"]
        output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        return {RATE: float(output)}

    def application(seconds: float) -> Sample:
        return send(lab.server("application"), login(lab, "application"), connections=4, threads=4, seconds=seconds)

    return {"bcrypt": bcrypt, "application": application}


def crowds(lab: Lab) -> dict[str, Contender]:
    """Send requests over more and more connections. None may fail."""

    def crowd(connections: int) -> Contender:
        def turn(seconds: float) -> Sample:
            return send(lab.server("application"), me(lab, "application"), connections=connections, seconds=seconds)

        return turn

    return {f"{connections} connections": crowd(connections) for connections in (64, 200, 500)}


def workers(plan: Callable[[Lab, str], Plan]) -> Callable[[Lab], dict[str, Contender]]:
    """Compare one worker on its own core with two workers on all cores, shared with the load and the database."""

    def contenders(lab: Lab) -> dict[str, Contender]:
        def contender(kind: str) -> Contender:
            def turn(seconds: float) -> Sample:
                return send(lab.server(kind), plan(lab, kind), connections=32, seconds=seconds)

            return turn

        return {"application": contender("application"), "two workers": contender("two workers")}

    return contenders


def cold_start(lab: Lab) -> dict[str, Contender]:
    """Start a process, and wait for its first response."""

    def contender(kind: str) -> Contender:
        def turn(_seconds: float) -> Sample:
            with lab.start(kind) as server:
                return {START: server.seconds_to_first_response * 1000, START_CPU: server.cpu_seconds() * 1000}

        return turn

    return {kind: contender(kind) for kind in kinds(lab)}


def import_time(lab: Lab) -> dict[str, Contender]:
    """Import the modules, and do nothing else."""

    def contender(module: str, path: str) -> Contender:
        command = ["taskset", "--cpu-list", ",".join(map(str, lab.cores.server)), sys.executable, "-c"]

        def turn(_seconds: float) -> Sample:
            started = time.perf_counter()
            subprocess.run([*command, f"import {module}"], cwd=ROOT, check=True, env={"PYTHONPATH": path})
            return {IMPORT: (time.perf_counter() - started) * 1000}

        return turn

    reference = ("app.cli, app.server.serve", f"{lab.against}/src") if lab.against else ("benchmarks.limit", str(ROOT))
    return {
        kinds(lab)[0]: contender(*reference),
        "application": contender("app.cli, app.server.serve", str(ROOT / "src")),
    }


def memory(lab: Lab) -> dict[str, Contender]:
    """Measure the memory of a worker after its start, and again after a load."""

    def contender(kind: str) -> Contender:
        def turn(seconds: float) -> Sample:
            with lab.start(kind) as server:
                fresh = server.memory_mb()
                for plan in (livez, me, first_page):
                    send(server, plan(lab, kind), connections=16, seconds=seconds)
                return {FRESH: fresh, LOADED: server.memory_mb()}

        return turn

    return {kind: contender(kind) for kind in kinds(lab)}


def growth(requests: int) -> Callable[[Lab], dict[str, Contender]]:
    """Measure the growth of the memory of a worker over this number of requests."""

    def contenders(lab: Lab) -> dict[str, Contender]:
        def turn(seconds: float) -> Sample:
            # Always the same tokens, because the server caches each new one, up to a limit.
            plan = me(lab, "application")
            with lab.start("application") as server:
                # The first requests fill pools, caches and arenas. That does not count as growth.
                sent = [send(server, plan, connections=16, seconds=seconds)[RATE] * seconds]
                memory_mb = [server.memory_mb()]
                while sent[-1] < requests + sent[0]:
                    figures = send(server, plan, connections=16, seconds=seconds)
                    sent.append(sent[-1] + figures[RATE] * seconds)
                    memory_mb.append(server.memory_mb())
            return {GROWTH: linear_regression(sent, memory_mb).slope * 1e3 * 1e4, LOADED: memory_mb[-1]}

        return {"application": turn}

    return contenders


def cases(requests: int) -> list[Case]:
    """Return all cases with their goals."""
    return [
        Case("livez", "`/livez`, 16 connections", compared(livez, 16), (Goal(RATE, 0.65, 0.75),)),
        Case("me-1", "`/users/me`, 1 connection", compared(me, 1)),
        Case(
            "me-16",
            "`/users/me`, 16 connections",
            compared(me, 16),
            (Goal(RATE, 0.55, 0.70), Goal(CPU, 1.7, 1.4, at_most=True)),
        ),
        Case(
            "me-64",
            "`/users/me`, 64 connections",
            compared(me, 64),
            (Goal(RATE, 0.55, 0.70), Goal(CPU, 1.7, 1.4, at_most=True), Goal(P99, 1.0, at_most=True)),
        ),
        Case("list", "50 accounts, 16 connections", compared(first_page, 16), (Goal(RATE, 0.50, 0.65),)),
        Case("login", "login, 4 connections", compared(login, 4, threads=4)),
        Case(
            "bcrypt",
            "login, 4 connections, against bcrypt alone",
            logins_against_bcrypt,
            (Goal(RATE, 0.95),),
        ),
        Case(
            "livez-logins",
            "`/livez`, 1 connection, while 4 log in",
            livez_during_logins,
            (Goal(P99, 0.7, 0.35, at_most=True),),
        ),
        Case("pages", "a page of 50 far from the start, 1 connection", pages, (Goal(P50, 1.2, at_most=True),)),
        Case(
            "refresh",
            "refresh token rotation, 16 connections",
            compared(refresh, 16, threads=16, has_limit=False),
            (Goal(RATE, 600, is_ratio=False),),
        ),
        Case("create", "create an account, 16 connections", compared(create, 16, has_limit=False)),
        Case("change", "rename one account, 1 connection", compared(change, 1, has_limit=False)),
        Case("crowds", "`/users/me`, 64 to 500 connections", crowds),
        Case("workers", "`/livez`, 32 connections, two workers against one", workers(livez), (Goal(RATE, 1.8),)),
        Case("workers-me", "`/users/me`, 32 connections, two workers against one", workers(me)),
        Case("start", "start to first response", cold_start, (Goal(START, 1.8, 1.5, at_most=True),)),
        Case("import", "import of the modules", import_time),
        Case("memory", "memory of a worker", memory, (Goal(LOADED, 110, at_most=True, is_ratio=False),)),
        Case("growth", f"memory over {requests:,} requests", growth(requests)),
    ]
