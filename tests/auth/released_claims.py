"""The reader of claims as the release before `acr` and `amr` had it. During a rolling deploy, its processes read our tokens.

Frozen: it changes only when the oldest release changes that new tokens must suit.
"""

import re
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict

_EPOCH = 1_577_836_800
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _refuse_other_spelling(value: object) -> object:
    if isinstance(value, str) and _UUID.fullmatch(value) is None:
        raise ValueError
    return value


_Identifier = Annotated[UUID, BeforeValidator(_refuse_other_spelling)]
_Integer = Annotated[int, Strict()]
_Instant = Annotated[_Integer, Field(ge=_EPOCH)]


class ReleasedClaims(BaseModel):
    model_config = ConfigDict(frozen=True)

    iss: str
    aud: str | list[Any]
    client_id: str
    jti: str
    user_id: _Identifier = Field(validation_alias="sub")
    session_id: _Identifier = Field(validation_alias="sid")
    version: _Integer = Field(validation_alias="ver")
    scopes: Annotated[frozenset[str], BeforeValidator(str.split)] = Field(validation_alias="scope")
    auth_time: _Instant
    issued_at: _Instant = Field(validation_alias="iat")
    expires_at: _Instant = Field(validation_alias="exp")
    not_before: _Instant = Field(default=_EPOCH, validation_alias="nbf")
    kid: str


RELEASED_HEADER = {"alg", "kid", "typ"}
RELEASED_LENGTHS = {"token": 4096, "header": 512}
