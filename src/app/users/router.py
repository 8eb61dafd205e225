"""`/users`."""

from app.auth.dependencies import CurrentUser
from app.core import routing
from app.users.schemas import UserRead
from app.users.service import Account

router = routing.router(prefix="/users", tags=["users"])


@router.get("/me", response_model=UserRead)
async def read_me(user: CurrentUser) -> Account:
    """Show the account the access token belongs to."""
    return user
