"""
The routes of the callbacks' outbox.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from milkrun.status import CallbackState
from milkrun.wire import CallbackInfo, CallbackList, Problem, Replayed, ReplayRequest, Rotated, RotateRequest
from milkrun_engine.api.auth import Authenticator
from milkrun_engine.service.callbacks import CallbackService


def router(service: CallbackService, authenticator: Authenticator) -> APIRouter:
    """Build the routes over the use cases."""
    api = APIRouter(
        prefix="/api/callbacks",
        responses={"default": {"model": Problem, "description": "Any error"}},
        tags=["callbacks"],
    )
    tenant_of = Depends(authenticator)

    @api.get("")
    async def list_callbacks(
        tenant: Annotated[str, tenant_of],
        limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
        before: str | None = None,
        state: CallbackState | None = None,
    ) -> CallbackList:
        """List callbacks, newest first; `state=given_up` are those that nobody took. Never secrets or headers."""
        return await service.page(tenant, limit=limit, before=before, state=state)

    @api.post("/replay")
    async def replay_all(body: ReplayRequest, tenant: Annotated[str, tenant_of]) -> Replayed:
        """Send again all callbacks that were given up on a receiver, each under its old id."""
        return Replayed(callbacks=await service.replay_all(tenant, body.receiver))

    @api.post("/rotate")
    async def rotate(body: RotateRequest, tenant: Annotated[str, tenant_of]) -> Rotated:
        """Let undelivered callbacks and those of running jobs that sign with the old secret sign with both."""
        return Rotated(jobs=await service.rotate(tenant, body.old, body.new))

    @api.post("/{callback_id}/replay")
    async def replay(callback_id: str, tenant: Annotated[str, tenant_of]) -> CallbackInfo:
        """Send a callback again, now and under its old id; 409 for one that was delivered."""
        return await service.replay(tenant, callback_id)

    return api
