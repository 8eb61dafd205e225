"""The environment of the process: usable CPU cores, and environment variables that are not settings."""

import math
import os
import re
from collections.abc import Iterator, Mapping, MutableMapping
from ipaddress import ip_address
from pathlib import Path

_ROOT = Path("/")
_KUBERNETES_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://(?:[0-9.]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
# Suffixes that Kubernetes adds to the name of a service, and the values of these variables.
_KUBERNETES_FORMS = (
    (re.compile(r"_SERVICE_PORT(?:_[A-Z0-9_]+)?|_PORT_[0-9]+_(?:TCP|UDP|SCTP)_PORT"), re.compile(r"[0-9]{1,5}")),
    (re.compile(r"_PORT(?:_[0-9]+_(?:TCP|UDP|SCTP))?"), _KUBERNETES_ADDRESS),
    (re.compile(r"_PORT_[0-9]+_(?:TCP|UDP|SCTP)_PROTO"), re.compile(r"tcp|udp|sctp")),
    (re.compile(r"_SERVICE_HOST|_PORT_[0-9]+_(?:TCP|UDP|SCTP)_ADDR"), re.compile(r"[0-9A-Fa-f:.]+")),
)
# All variables that libpq reads. The drivers would add their values to the database URL, or prefer them to it.
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
    """Remove the variables of libpq, so that only the settings decide how the database is reached.

    Arguments of the drivers cannot override all of them: libpq fails if `PGSERVICE` names an unknown service.
    """
    for name in LIBPQ_VARIABLES:
        environment.pop(name, None)


def kubernetes_variables(environment: Mapping[str, str]) -> set[str]:
    """Return the variables that Kubernetes sets in every pod for the services of the namespace."""
    services = [name.removesuffix("_SERVICE_HOST") for name in environment if name.endswith("_SERVICE_HOST")]
    return {
        name
        for service in services
        if _is_service(service, environment)
        for name, value in environment.items()
        if name.startswith(service) and _is_of_service(name.removeprefix(service), value)
    }


def _is_service(name: str, environment: Mapping[str, str]) -> bool:
    """Return whether all three variables of a service are set. A misspelt setting never looks like that."""
    try:
        ip_address(environment[f"{name}_SERVICE_HOST"])
    except ValueError:
        return False
    port = environment.get(f"{name}_SERVICE_PORT", "")
    return port.isdecimal() and bool(_KUBERNETES_ADDRESS.fullmatch(environment.get(f"{name}_PORT", "")))


def _is_of_service(ending: str, value: str) -> bool:
    return any(form.fullmatch(ending) and values.fullmatch(value) for form, values in _KUBERNETES_FORMS)


def usable_cores(root: Path = _ROOT) -> int:
    """Return the number of cores that CPU affinity, `PYTHON_CPU_COUNT` and the CPU quota of the cgroup allow; at least one."""
    return max(1, min([_visible_cores(), *map(math.ceil, _quotas(root))]))


def _visible_cores() -> int:
    # `process_cpu_count` exists since Python 3.13 and reads PYTHON_CPU_COUNT. macOS has no `sched_getaffinity`.
    count = getattr(os, "process_cpu_count", None) or os.cpu_count
    cores = count() or 1
    return min(cores, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else cores


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quota, in cores, of each cgroup of the process."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controllers
            group = mount / path.lstrip("/")
            # In a container, this is often a path of the host that does not exist here. Then the mount is the cgroup.
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
