"""The application with the event stream and the WebSockets of the tests: `python -m tests.deploy.served serve`."""

from app.__main__ import main
from app.health import router as health
from tests.auth import event_streams, socket_routes

health.ROUTERS = (event_streams.router, socket_routes.router)  # type: ignore[attr-defined]  # The feature has none of its own.

if __name__ == "__main__":
    main()
