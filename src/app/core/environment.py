"""Facts that the process reads from its surroundings: usable cores, and variables that are no settings."""

import math
import os
import re
from collections.abc import Iterator, Mapping, MutableMapping
from ipaddress import ip_address
from pathlib import Path

_ROOT = Path("/")
_KUBERNETES_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://(?:[0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
# What Kubernetes writes after the name of a service, and the values that it writes there.
_KUBERNETES_FORMS = (
    (re.compile(r"_SERVICE_PORT(?:_[A-Z0-9_]+)?|_PORT_[0-9]+_(?:TCP|UDP|SCTP)_PORT"), re.compile(r"[0-9]{1,5}")),
    (re.compile(r"_PORT(?:_[0-9]+_(?:TCP|UDP|SCTP))?"), _KUBERNETES_ADDRESS),
    (re.compile(r"_PORT_[0-9]+_(?:TCP|UDP|SCTP)_PROTO"), re.compile(r"tcp|udp|sctp")),
    (re.compile(r"_SERVICE_HOST|_PORT_[0-9]+_(?:TCP|UDP|SCTP)_ADDR"), re.compile(r"[0-9A-Fa-f:.]+")),
)
# Everything that libpq reads. The drivers would add these to the URL of the database, or let them win over it.
# fmt: off
LIBPQ_VARIABLES = frozenset(
    {
        "PGAPPNAME", "PGCHANNELBINDING", "PGCLIENTENCODING", "PGCONNECT_TIMEOUT", "PGDATABASE", "PGDATESTYLE",
        "PGGEQO", "PGGSSDELEGATION", "PGGSSENCMODE", "PGGSSLIB", "PGHOST", "PGHOSTADDR", "PGKRBSRVNAME",
        "PGLOADBALANCEHOSTS", "PGLOCALEDIR", "PGMAXPROTOCOLVERSION", "PGMINPROTOCOLVERSION", "PGOAUTHDEBUG",
        "PGOPTIONS", "PGPASSFILE", "PGPASSWORD", "PGPORT", "PGREQUIREAUTH", "PGREQUIREPEER", "PGREQUIRESSL",
        "PGSERVICE", "PGSERVICEFILE", "PGSSLCERT", "PGSSLCERTMODE", "PGSSLCOMPRESSION", "PGSSLCRL", "PGSSLCRLDIR",
        "PGSSLKEY", "PGSSLMAXPROTOCOLVERSION", "PGSSLMINPROTOCOLVERSION", "PGSSLMODE", "PGSSLNEGOTIATION",
        "PGSSLROOTCERT", "PGSSLSNI", "PGSYSCONFDIR", "PGTARGETSESSIONATTRS", "PGTZ", "PGUSER"
    }
)
# fmt: on


def forget_libpq(environment: MutableMapping[str, str] = os.environ) -> None:
    """Take libpq's variables out of the environment: only the settings say which database is used, and how.

    Arguments of the drivers cannot do this. libpq fails when `PGSERVICE` names a service that it does not find.
    """
    for name in LIBPQ_VARIABLES:
        environment.pop(name, None)


def kubernetes_variables(environment: Mapping[str, str]) -> set[str]:
    """Name the variables that Kubernetes sets in every pod for the services of the namespace."""
    services = [name.removesuffix("_SERVICE_HOST") for name in environment if name.endswith("_SERVICE_HOST")]
    return {
        name
        for service in services
        if _is_service(service, environment)
        for name, value in environment.items()
        if name.startswith(service) and _is_of_service(name.removeprefix(service), value)
    }


def _is_service(name: str, environment: Mapping[str, str]) -> bool:
    """A service has always these three, so a misspelt setting alone never looks like one."""
    try:
        ip_address(environment[f"{name}_SERVICE_HOST"])
    except ValueError:
        return False
    port = environment.get(f"{name}_SERVICE_PORT", "")
    return port.isdecimal() and bool(_KUBERNETES_ADDRESS.fullmatch(environment.get(f"{name}_PORT", "")))


def _is_of_service(ending: str, value: str) -> bool:
    return any(form.fullmatch(ending) and values.fullmatch(value) for form, values in _KUBERNETES_FORMS)


def usable_cores(root: Path = _ROOT) -> int:
    """Count the cores that this process may use: affinity, `PYTHON_CPU_COUNT` and the CPU quota of its cgroup limit them."""
    return max(1, min([_visible_cores(), *map(math.ceil, _quotas(root))]))


def _visible_cores() -> int:
    # Python 3.13 has a function for it, which also reads PYTHON_CPU_COUNT. macOS has no affinity.
    count = getattr(os, "process_cpu_count", None) or os.cpu_count
    cores = count() or 1
    return min(cores, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else cores


def _quotas(root: Path) -> Iterator[float]:
    """Yield the limit of each cgroup that the process is in, in cores."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controllers
            group = mount / path.lstrip("/")
            # In a container the path is often the host's, which does not exist here: the mount itself is then the group.
            for directory in (group, *group.parents):
                if directory.is_relative_to(mount):
                    yield from _quota(directory)


def _quota(group: Path) -> Iterator[float]:
    names = ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    for files in names:
        try:
            quota, period = " ".join((group / file).read_text() for file in files).split()
        except OSError:
            continue
        if quota not in {"max", "-1"}:
            yield int(quota) / int(period)
