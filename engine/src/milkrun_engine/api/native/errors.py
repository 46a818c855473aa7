"""
Errors of the native API: problem details (RFC 9457) with a stable `code`.
"""

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from milkrun.wire import Problem
from milkrun_engine.api.limits import MAX_BODY_BYTES, BodyTooLarge
from milkrun_engine.api.pages.rendering import error_page
from milkrun_engine.domain import errors

log = logging.getLogger(__name__)

#: every domain error's HTTP status; a test walks all of them
STATUS: dict[type[errors.EngineError], int] = {
    errors.InvalidRequest: 422,
    errors.MissingColumn: 422,
    errors.UnknownModel: 422,
    errors.Unauthenticated: 401,
    errors.NotFound: 404,
    errors.IdempotencyMismatch: 422,
    errors.InputsDiffer: 409,
    errors.StaleClaim: 409,
    errors.NotEnded: 409,
    errors.AlreadyEnded: 409,
    errors.CallbackDelivered: 409,
    errors.NothingToRetry: 409,
    errors.InputDeleted: 409,
    errors.CursorLost: 410,
    errors.InputTooLarge: 413,
    errors.OutcomeUnknown: 503,
    errors.ShuttingDown: 503,
    errors.DiskFull: 507,
    errors.BlobCorrupt: 500,
}
_RETRY_AFTER_SECONDS = 2


def install(app: FastAPI) -> None:
    """Render all errors of an app: as problems, or for a browser as a page."""
    app.add_exception_handler(errors.EngineError, _engine_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(BodyTooLarge, _too_large)
    app.add_exception_handler(Exception, _internal)


def problem(request: Request, status: int, code: str, detail: str) -> Response:
    """One error answer."""
    if not request.url.path.startswith("/api"):
        return error_page(status, detail)
    body = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        code=code,
        detail=detail,
        request_id=getattr(request.state, "request_id", None),
    )
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status == 503:
        headers["Retry-After"] = str(_RETRY_AFTER_SECONDS)
    return JSONResponse(body.model_dump(), status, headers, media_type="application/problem+json")


async def _engine_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.EngineError)
    return problem(request, STATUS[type(error)], error.code, str(error))


async def _validation_error(request: Request, error: Exception) -> Response:
    # Says where and what, and never what was sent: that may be a prompt.
    assert isinstance(error, RequestValidationError)
    found = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()[:5]]
    return problem(request, 422, errors.InvalidRequest.code, "; ".join(found))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 401: "unauthenticated"}.get(error.status_code, "invalid_request")
    return problem(request, error.status_code, code, f"{error.detail}: {request.method} {request.url.path}")


async def _too_large(request: Request, _error: Exception) -> Response:
    detail = f"the body is over {MAX_BODY_BYTES:,} bytes; upload the rows with POST /api/files and name the file"
    return problem(request, 413, errors.InputTooLarge.code, detail)


async def _internal(request: Request, error: Exception) -> Response:
    request_id = getattr(request.state, "request_id", "none")
    extra = {"action": "internal_error", "request_id": request_id, "path": request.url.path}
    log.error("a request failed", extra=extra, exc_info=error)
    answer = problem(request, 500, "internal", "the engine failed; its log names this request's id")
    # Starlette renders this one outside of all middleware, `limits.Limits` that names requests included.
    answer.headers["X-Request-ID"] = request_id
    return answer
