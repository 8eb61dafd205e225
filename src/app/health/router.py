"""Liveness and readiness probes. They are outside `/api/v1`, for load balancers and supervisors."""

from fastapi import Response

from app.core.http import routing
from app.core.http.access import public
from app.core.http.dependencies import CoreRequest
from app.core.http.problems import problem_responses
from app.health import service
from app.health.errors import NotReadyError
from app.health.schemas import Health, Readiness

router = routing.router(tags=["health"])
ROOT_ROUTERS = (router,)

# Serialized once: probes are frequent, and this response never changes.
_LIVE = Health().model_dump_json()


@router.get("/livez", response_model=Health, openapi_extra=public)
async def read_liveness() -> Response:
    """Check that the process runs.

    This does not check the database.
    """
    return Response(_LIVE, media_type=routing.JSON)


@router.get(
    "/readyz",
    response_model_exclude_none=True,
    openapi_extra=public,
    responses=problem_responses(NotReadyError),
)
async def read_readiness(request: CoreRequest) -> Readiness:
    """Check whether this process can serve requests.

    If it cannot, the response names the reasons.
    """
    state = request.state
    await service.check_readiness(state["database"], schema=state["schema"], checks=state["readiness"])
    standby = state["standby"]
    return Readiness(standby=(standby.reason or "in_use") if standby else None)
