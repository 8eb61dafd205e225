"""Start of a web process, the same under `app serve` and under any other ASGI server."""

import logging
import sys
from collections.abc import Iterator
from typing import NoReturn

from app import features
from app.auth import second_factor
from app.core.config import HashingSettings, KeySettings, Settings
from app.core.db import tls
from app.core.observability.logs import configure
from app.core.security.breaches import check_breached
from app.core.security.keys import load_key_ring
from app.core.standby import start as standby
from app.migrations import revisions

# uvicorn and gunicorn stop at this exit code. At any other code they start the failed worker process again, forever.
_STARTUP_FAILURE = 3

log = logging.getLogger(__name__)


def prepare(settings: Settings) -> None:
    """Configure the log, and check the files that the settings name. An error found later would cause a traceback."""
    configure(settings.log, readable=settings.environment == "local")
    second_factor.refuse_required_without_feature(settings)
    if load_key_ring(settings.of(KeySettings)).active_seal_key is None and features.sealed_columns():
        # No refusal: in a rolling deploy, the key set of the release before has none, and logins do not need one.
        log.warning("no seal key, operations that store secrets answer 503", extra={"remedy": _remedy(settings)})
    for problem in proxy_problems(settings):
        log.warning("APP_SERVER__TRUSTED_PROXIES: %s", problem)
    revisions.head()
    tls.check(settings.database)
    standby.check(settings.database)
    if breached := settings.of(HashingSettings).breached_passwords_file:
        check_breached(breached)


def _remedy(settings: Settings) -> str:
    if settings.of(KeySettings).signing_keys is None:
        return "run `app keys add seal`"
    return (
        "put APP_AUTH__SIGNING_KEYS into a file, run `app keys add seal` on it, and set the variable to its new content"
    )


def proxy_problems(settings: Settings) -> Iterator[str]:
    """Yield what is unsafe about the trusted proxies. The service starts, because it may be meant."""
    trusted = settings.server.trusted_proxies
    if any(network.prefixlen == 0 for network in trusted):
        yield (
            "it trusts every address, so a client can choose its own address in X-Forwarded-For and evade the limit on wrong "
            "passwords; list the networks of your proxies"
        )
    if settings.is_production and not trusted:
        # A production has a public URL with https, and the server speaks only HTTP. So there is a proxy.
        yield (
            "it is not set, so all clients of the proxy that serves the public URL share one limit on wrong passwords; set it to the "
            "network of the proxy"
        )


def refuse_to_start(message: str) -> NoReturn:
    """End the process with an error message. ASGI servers print tracebacks of exceptions, but not of SystemExit."""
    sys.stderr.write(f"app: {message}\n")
    sys.stderr.flush()
    sys.exit(_STARTUP_FAILURE)
