"""
How pages are rendered: autoescaped templates, and headers that allow no script at all.
"""

from datetime import timedelta
from http import HTTPStatus

import jinja2
from fastapi.responses import HTMLResponse, Response

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_LOGIN = 'Basic realm="Milkrun: any user name, an API key as the password", charset="UTF-8"'

_templates = jinja2.Environment(
    loader=jinja2.PackageLoader("milkrun_engine.api.pages"), autoescape=True, undefined=jinja2.StrictUndefined
)
_templates.filters["number"] = lambda value: "–" if value is None else f"{value:,}"
_templates.filters["duration"] = lambda seconds: str(timedelta(seconds=round(seconds)))
_templates.filters["instant"] = lambda value: value.strftime("%Y-%m-%d %H:%M:%S UTC") if value else "–"


def render(name: str, status: int = 200, **facts: object) -> Response:
    """Fill in a template."""
    return HTMLResponse(_templates.get_template(name).render(**facts), status, headers=_HEADERS)


def error_page(status: int, detail: str) -> Response:
    """Tell a person what went wrong; a missing key makes the browser ask for one."""
    answer = render("error.html", status, title=HTTPStatus(status).phrase, detail=detail, needs_key=status == 401)
    if status == 401:
        answer.headers["WWW-Authenticate"] = _LOGIN
    return answer
