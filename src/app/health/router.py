"""The probes: outside `/api/v1`, for whatever supervises the process."""

from fastapi import Response

from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import CoreRequest
from app.core.http.problems import problem_responses
from app.health import service
from app.health.errors import NotReadyError
from app.health.schemas import Health

router = routing.router(tags=["health"])
ROOT_ROUTERS = (router,)
# Asked all the time, and always the same.
_WELL = Health().model_dump_json()


@router.get("/livez", response_model=Health, openapi_extra=public)
async def read_liveness() -> Response:
    """Say that the process runs; the database is not asked."""
    return Response(_WELL, media_type=routing.JSON)


@router.get("/readyz", response_model=Health, openapi_extra=public, responses=problem_responses(NotReadyError))
async def read_readiness(request: CoreRequest) -> Health:
    """Say whether this process may be sent traffic, and what is missing if not."""
    state = request.state
    await service.check_readiness(state["database"], schema=state["schema"], checks=state["readiness"])
    return Health()
