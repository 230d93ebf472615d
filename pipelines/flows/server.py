"""Prefect's server, that of `prefect server start`, which answers its own pages only.

A web page that is open in the user's browser can send requests to this machine too, and a run of a deployment runs
code. Prefect lets every page read its answers, and what a page sends without asking first arrives even where reading is
not allowed: a POST whose body has no type, a WebSocket. And a page whose name is made to lead here (DNS rebinding) is
of the server's own origin. So requests of other origins and for other host names are refused before Prefect sees them.

Host, port and all else are Prefect's settings. PREFECT_SERVER_CORS_ALLOWED_ORIGINS names origins other than the
server's own address; `*` allows all, as Prefect does.
"""

from collections.abc import Sequence
from urllib.parse import urlsplit

import uvicorn
from prefect.settings import PREFECT_SERVER_CORS_ALLOWED_ORIGINS, get_current_settings, temporary_settings
from prefect.settings.models.server.api import ServerAPISettings
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

ANY = "*"


class OwnPages:
    """Refuses what pages of other origins send: browsers name the origin of a page in its requests and WebSockets."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]):
        self._app, self._origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        named = Headers(scope=scope).getlist("origin") if scope["type"] in ("http", "websocket") else []
        foreign = [origin for origin in named if origin not in self._origins]
        if foreign and ANY not in self._origins:
            problem = f"Pages of {foreign[0]} may not call this server: PREFECT_SERVER_CORS_ALLOWED_ORIGINS lacks it.\n"
            await PlainTextResponse(problem, status_code=403)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def allowed_origins(api: ServerAPISettings) -> list[str]:
    """Those that the settings name, or the server's own addresses."""
    if "cors_allowed_origins" in api.model_fields_set:
        return [origin.strip() for origin in api.cors_allowed_origins.split(",")]
    return [f"http://{name}:{api.port}" for name in dict.fromkeys((api.host, "localhost"))]


def protect(app: ASGIApp, origins: Sequence[str], host: str) -> ASGIApp:
    """The app for pages of these origins and for the names in them."""
    hosts = [ANY] if ANY in origins else [host, *(str(urlsplit(origin).hostname) for origin in origins)]
    return TrustedHostMiddleware(OwnPages(app, origins), allowed_hosts=hosts)


def main() -> None:
    from prefect.server.api.server import create_app

    server = get_current_settings().server
    api, origins = server.api, allowed_origins(server.api)
    with temporary_settings({PREFECT_SERVER_CORS_ALLOWED_ORIGINS: ",".join(origins)}):
        uvicorn.run(
            protect(create_app(final=True), origins, api.host),
            host=api.host,
            port=api.port,
            timeout_keep_alive=api.keepalive_timeout,
            ws_ping_interval=api.websocket_ping_interval,
            ws_ping_timeout=api.websocket_ping_timeout,
            log_level=server.logging_level.lower(),
        )


if __name__ == "__main__":
    main()
