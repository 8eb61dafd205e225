"""The application with the event stream of the tests: `python -m tests.auth.served_streams serve`, or `app` for other ASGI servers."""

from app.health import router as health
from tests.auth.event_streams import router

health.ROUTERS = (router,)  # type: ignore[attr-defined]  # The feature has none of its own.

if __name__ == "__main__":
    from app.__main__ import main

    main()
else:
    pass
