"""
A job's page and the list of jobs: plain HTML that renews itself while a job runs.

A job's page opens by its signed link, or with a key; the list asks the browser for a key.
Neither shows a prompt or an answer.
"""

from importlib.resources import files
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response

from milkrun.wire import Job
from milkrun_engine.api.auth import Authenticator
from milkrun_engine.api.pages.rendering import render
from milkrun_engine.service.jobs import JobService
from milkrun_engine.service.views import PageLinks

_LISTED = 200


def router(service: JobService, links: PageLinks, authenticator: Authenticator) -> APIRouter:
    """Build the pages over the use cases."""
    pages = APIRouter(include_in_schema=False)
    style = (files("milkrun_engine.api.pages") / "style.css").read_bytes()

    @pages.get("/")
    async def home() -> Response:
        return RedirectResponse("/jobs")

    @pages.get("/style.css")
    async def stylesheet() -> Response:
        return Response(style, media_type="text/css", headers={"Cache-Control": "max-age=300"})

    @pages.get("/jobs")
    async def job_list(tenant: Annotated[str, Depends(authenticator)]) -> Response:
        listed = await service.page(tenant, limit=_LISTED)
        return render("jobs.html", jobs=listed.jobs, share=_share, more=listed.next is not None)

    @pages.get("/jobs/{job_id}")
    async def job_page(request: Request, job_id: str, sig: str | None = None) -> Response:
        if sig is not None and links.is_valid(job_id, sig):
            tenant = await service.tenant_of(job_id)
        else:
            tenant = await authenticator(request)
        job = await service.get(tenant, job_id)
        return render("job.html", job=job, share=_share(job), seconds=job.seconds)

    return pages


def _share(job: Job) -> int | None:
    """Rows done, in percent; unknown until the input is read."""
    if job.rows_total is None:
        return None
    return 100 if job.rows_total == 0 else 100 * job.rows_done // job.rows_total
