"""`python -m benchmarks.upload_server`: `app serve` with two operations more, which take large bodies as a form and as a stream."""

import sys
from typing import Any
from unittest.mock import patch

from fastapi import FastAPI, Request, UploadFile

from app.__main__ import main
from app.core.http import routing
from app.core.http.access import public
from app.main import create_app
from app.server import serve

router = routing.router()
_LARGE: dict[str, Any] = {"max_body_size": 200_000_000, "body_timeout": 3600}


@router.post("/form", openapi_extra=public | routing.options(**_LARGE))
async def receive_form(file: UploadFile) -> int:
    """Return the size of the file. It lies on the disk."""
    return file.size or 0


@router.post("/raw", openapi_extra=public | routing.options(**_LARGE, consumes="text/csv"))
async def receive_raw(request: Request) -> int:
    """Return the size of the body, which is not stored."""
    return sum([len(chunk) async for chunk in request.stream()])


def create_app_with_uploads(*arguments: Any, **options: Any) -> FastAPI:
    """Build the application as the server does, and add the two operations."""
    # Whatever the server passes: its arguments are not those of this module.
    app = create_app(*arguments, **options)
    routing.include(app, router)
    return app


if __name__ == "__main__":
    sys.argv = ["app", "serve"]
    with patch.object(serve, "create_app", create_app_with_uploads):
        main()
