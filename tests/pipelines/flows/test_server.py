"""Whose requests reach Prefect's server. The real server is asked in test_flows.py."""

import asyncio

import pytest
from prefect.server.schemas.schedules import CronSchedule
from prefect.settings.models.server.api import ServerAPISettings
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from pipelines.flows.server import allowed_origins, protect

FOREIGN = "http://evil.example"
EVENTS = "ws://127.0.0.1:4200/api/events/in"


async def open_to_all(scope, receive, send):
    """Answers everybody, as Prefect does."""
    if scope["type"] == "websocket":
        socket = WebSocket(scope, receive, send)
        await socket.accept()
        await socket.send_text("hello")
        await socket.close()
    else:
        await PlainTextResponse("hello", headers={"access-control-allow-origin": "*"})(scope, receive, send)


def browser(origins, host="127.0.0.1", port=4200):
    return TestClient(protect(open_to_all, origins, "127.0.0.1"), base_url=f"http://{host}:{port}")


@pytest.fixture
def own(monkeypatch):
    """The addresses of a server whose origins nobody has set."""
    monkeypatch.delenv("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", raising=False)
    monkeypatch.delenv("PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS", raising=False)
    return allowed_origins(ServerAPISettings(host="127.0.0.1", port=4200))


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE"])
def test_requests_of_the_servers_own_pages_and_of_programs_are_answered_and_no_others(own, method):
    assert own == ["http://127.0.0.1:4200", "http://localhost:4200"]
    for host in ("127.0.0.1", "localhost"):
        assert browser(own, host).request(method, "/api").text == "hello"
        for origin in own:
            assert browser(own, host).request(method, "/api", headers={"Origin": origin}).text == "hello"
    for origin in (
        FOREIGN,
        "null",
        "http://127.0.0.1:4201",
        "https://127.0.0.1:4200",
        "http://127.0.0.1:4200.evil.example",
    ):
        answer = browser(own).request(method, "/api", headers={"Origin": origin})
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
        assert "PREFECT_SERVER_CORS_ALLOWED_ORIGINS" in answer.text


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.evil.example"])
def test_a_name_that_was_made_to_lead_here_is_refused_although_its_pages_are_of_one_origin_with_it(own, host):
    assert browser(own, host).post("/api").status_code == 400


def test_a_websocket_is_opened_for_own_pages_alone(own):
    with browser(own).websocket_connect(EVENTS, headers={"Origin": own[0]}) as socket:
        assert socket.receive_text() == "hello"
    for headers in ({"Origin": FOREIGN}, {"Host": "evil.example"}):
        with pytest.raises(WebSocketDisconnect), browser(own).websocket_connect(EVENTS, headers=headers):
            pass


def test_the_origins_of_the_settings_take_the_place_of_the_servers_own(monkeypatch):
    monkeypatch.setenv("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "http://lab.example:8080, http://localhost:8080")
    named = allowed_origins(ServerAPISettings())
    assert named == ["http://lab.example:8080", "http://localhost:8080"]
    assert browser(named, "lab.example", 8080).post("/api", headers={"Origin": named[0]}).text == "hello"
    assert browser(named).post("/api", headers={"Origin": "http://127.0.0.1:4200"}).status_code == 403
    monkeypatch.setenv("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "*")
    everybody = allowed_origins(ServerAPISettings())
    assert browser(everybody, "lab.example").post("/api", headers={"Origin": FOREIGN}).text == "hello"


def test_prefect_and_the_package_that_reads_its_clock_fit_so_that_a_cron_line_has_runs():
    nights = asyncio.run(CronSchedule(cron="0 1 * * *").get_dates(3))  # whenever 0.10 raises here, which is only logged
    assert [(night.hour, night.minute) for night in nights] == [(1, 0)] * 3
