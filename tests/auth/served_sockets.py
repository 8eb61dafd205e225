"""The application with the WebSockets of the tests: `python -m tests.auth.served_sockets serve`, or `app` for other ASGI servers."""

from app import asgi
from app.__main__ import main
from app.health import router as health
from tests.auth.socket_routes import router

health.ROUTERS = (router,)  # type: ignore[attr-defined]  # The feature has none of its own.

if __name__ == "__main__":
    main()
else:
    app = asgi.app
