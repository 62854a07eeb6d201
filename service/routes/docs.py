"""GET /docs: Swagger UI that works without a network, from the files of `fastapi-offline`."""

from __future__ import annotations

from importlib.resources import files
from typing import Literal

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

Asset = Literal["swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"]
router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """The API, to read and to try."""
    root: str = request.scope.get("root_path", "")
    return get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title="secondpass API",
        swagger_js_url=f"{root}/docs/assets/swagger-ui-bundle.js",
        swagger_css_url=f"{root}/docs/assets/swagger-ui.css",
        swagger_favicon_url=f"{root}/docs/assets/favicon.png",
        swagger_ui_parameters={"validatorUrl": None},  # else it calls validator.swagger.io
    )


@router.get("/docs/assets/{name}", response_class=FileResponse)
async def asset(name: Asset) -> Response:
    """One file of Swagger UI."""
    return FileResponse(str(files("fastapi_offline") / "static" / name))
