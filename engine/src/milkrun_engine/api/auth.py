"""
Who is calling: an API key as a bearer token or, for reading, as the password of a browser's own dialog.
"""

import base64
import binascii

from fastapi import Request

from milkrun_engine.domain.errors import Unauthenticated
from milkrun_engine.service.threads import Threads
from milkrun_engine.store import Store


class Authenticator:
    """Finds the tenant of a request by its key."""

    def __init__(self, store: Store, threads: Threads) -> None:
        self._store = store
        self._threads = threads

    async def __call__(self, request: Request) -> str:
        """
        The caller's tenant (a FastAPI dependency).

        Raises:
            Unauthenticated: there is no key, or none that is let in.
        """
        # A browser sends its dialog's password with other sites' forms too: good for looking only.
        key = _key_of(request.headers.get("authorization", ""), allow_basic=request.method in ("GET", "HEAD"))
        if key is None:
            raise Unauthenticated("send an API key: `Authorization: Bearer KEY`")
        tenant_id = await self._threads.read(self._store.tenants.of_key, key)
        if tenant_id is None:
            raise Unauthenticated("this API key is not known here; check MILKRUN_API_KEY and MILKRUN_URL")
        return tenant_id


def _key_of(header: str, *, allow_basic: bool) -> str | None:
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    if scheme.lower() == "basic" and allow_basic:
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2] or None
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None
