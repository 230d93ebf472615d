"""The flows as their users run them: under one real Prefect server, MLflow server and worker, started by `make ui`'s
program.

The repository they work in is the toy of tests/toy.py. Servers and worker take minutes of CPU: VAPI_TEST_SERVERS=1
turns these tests on.
"""

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import requests
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelling
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from pipelines.flows import lost
from pipelines.variants.sweep_form import SweepForm, opening_form
from tests.browser import needs_browser, open_browser, picture
from tests.slurm import needs_slurm, slurm
from tests.toy import NOISE, ROOT, WORK, make_toy, variant_of

pytestmark = pytest.mark.skipif(
    "VAPI_TEST_SERVERS" not in os.environ,
    reason="starts servers: VAPI_TEST_SERVERS=1 pytest tests/pipelines/flows/test_flows.py",
)
SECONDS = 600  # until a wait is given up
SWEEP = "ablation-sweep/ablation-sweep"
PASSWORD = "correct-horse"
# in the page of the form
LISTS = "const list = document.querySelector('.schema-form-property-array-list');"
FIRST_LIST = f"{LISTS} return list && [...list.querySelectorAll('input')].map(i => i.value)"
EMPTY_FIRST_LIST = f"""{LISTS}
const remove = [...list.querySelectorAll('button')].find(b => !b.innerText.includes('Add item'));
if (remove) remove.click();
return list.querySelectorAll('input').length"""
SUBMIT = "[...document.querySelectorAll('button')].find(b => b.innerText.trim() === 'Submit').click()"
FOREIGN = "http://evil.example"
# what a page may send anywhere without asking: no header but those of a form, and a body without a type
PAGE = """
<script>
const body = new Blob([%r]);
fetch(%r, {method: "POST", mode: "no-cors", body}).then(() => "answered", String).then(told => document.title = told);
</script>
"""


class Ui:
    """`make ui` in a toy repository, and what a user sees and does there."""

    def __init__(self, root: Path, **settings: str):
        make_toy(root)
        self.root, self.work = root, root / WORK
        self.environment = {
            **{k: v for k, v in os.environ.items() if k not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "VAPI_WORK")},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PREFECT_HOME": str(root.with_name("prefect")),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "5",  # after three of which a worker is lost
            "PREFECT_SERVER_SERVICES_FOREMAN_LOOP_SECONDS": "1",
            "OMP_NUM_THREADS": "1",
            **settings,
        }
        self.process = self.start("-m", "pipelines.flows.ui")
        self.printed: dict[str, str] = {}
        assert self.process.stdout is not None
        for line in self.process.stdout:
            name, _, rest = line.partition(": ")
            self.printed[name] = rest.strip()
            if name == "Logs":
                break
        assert "Logs" in self.printed, self.printed
        self.prefect = self.printed["Prefect"].removesuffix("/deployments")
        self.api = f"{self.prefect}/api"
        self.environment["PREFECT_API_URL"] = self.api
        self.client = SyncPrefectClient(api=self.api)

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def deployment(self, name: str):
        return self.client.read_deployment_by_name(name).id

    def submit(self, deployment: str, **parameters):
        """Presses run."""
        return self.client.create_flow_run_from_deployment(self.deployment(deployment), parameters=parameters).id

    def runs(self) -> set:
        return {run.id for run in self.client.read_flow_runs()}

    def state(self, run):
        return self.client.read_flow_run(run).state

    def finish(self, run):
        """Waits for the end of a run; its final state."""
        wait_until(lambda: self.state(run).is_final())
        return self.state(run)

    def tasks(self, run) -> dict[str, str]:
        """Name -> state of each task, without the hashes of cells."""
        tasks = self.client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
        return {plain(task.name): task.state.name for task in tasks}

    def log(self, run) -> str:
        filters = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]))
        return "\n".join(log.message for log in self.client.read_logs(filters, limit=200))

    def events(self) -> list[str]:
        path = self.work / "stages.log"
        return path.read_text().splitlines() if path.exists() else []

    def sign(self, name: str) -> Path:
        """A file that a stage of the toy looks for."""
        path = self.work / name
        path.touch()
        return path

    def artifacts(self, run) -> dict[str, list[str]]:
        """Kind -> contents of what a run shows."""
        found: dict[str, list[str]] = {}
        for artifact in self.client.read_artifacts():
            if artifact.flow_run_id == run:
                found.setdefault(artifact.type, []).append(artifact.data)
        return found

    def table(self, rows: int) -> list[dict]:
        """The newest table artifact of so many rows."""
        artifacts = self.client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(like_="sweep-%")))
        tables = [json.loads(a.data) for a in sorted(artifacts, key=lambda a: a.created) if a.type == "table"]
        return [table for table in tables if len(table) == rows][-1]

    def open_in_mlflow(self) -> list[dict]:
        """The runs that MLflow calls running."""
        api = f"{self.printed['MLflow']}/api/2.0/mlflow"
        found = requests.post(f"{api}/experiments/search", json={"max_results": 100}, timeout=60).json()
        asked = {"experiment_ids": [e["experiment_id"] for e in found["experiments"]]}
        asked["filter"] = "attributes.status = 'RUNNING'"
        runs = requests.post(f"{api}/runs/search", json=asked, timeout=60).json().get("runs", [])
        return [run["info"] for run in runs]

    def processes(self) -> list[psutil.Process]:
        """Everything that runs in the repository."""
        return [p for p in psutil.process_iter() if works_in(p, self.root)]

    def stages(self) -> list[psutil.Process]:
        return [p for p in self.processes() if command_line(p)[1:2] == ["toy.py"]]

    def stage_and_dvc(self) -> list[psutil.Process]:
        """The process of the one stage that waits, once all others have ended, and of the DVC that runs it."""
        (stage,) = wait_until(lambda: found if len(found := self.stages()) == 1 else None)
        return [stage, next(p for p in stage.parents() if "pipelines.variants.experiment" in p.cmdline())]


def works_in(process: psutil.Process, root: Path) -> bool:
    try:
        return Path(process.cwd()).is_relative_to(root) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def command_line(process: psutil.Process) -> list[str]:
    """Empty of a process that has ended meanwhile."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def plain(name: str) -> str:
    return re.sub(r"-[0-9a-f]{8}$", "", name)


def wait_until(condition, seconds=SECONDS):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
    return found


def send(method, url, body=None, **headers) -> requests.Response:
    """A request with these headers and no other: without a type, unless one is given."""
    return requests.request(method, url, data=body and body.encode(), headers=headers, timeout=60)


def until_url(lines) -> list[str]:
    """The lines up to the one that is a URL."""
    found = []
    for line in lines:
        found.append(line.strip())
        if found[-1].startswith("http"):
            break
    return found


@pytest.fixture(scope="module")
def postgres():
    """Our own PostgreSQL server with two empty databases: its URL without scheme and database, None without one."""
    if shutil.which("initdb") is None or shutil.which("postgres") is None:
        yield None
        return
    import psycopg

    data = tempfile.mkdtemp(prefix="vapi-postgres-")
    as_user = []
    if os.getuid() == 0:  # which PostgreSQL refuses to run as
        shutil.chown(data, "nobody")
        as_user = ["runuser", "-u", "nobody", "--"]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    quiet = {"cwd": "/", "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*as_user, "initdb", "-D", data, "-U", "lab", "-A", "trust", "--no-sync"], check=True, **quiet)
    options = ["-D", data, "-p", str(port), "-k", data, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
    server = subprocess.Popen([*as_user, "postgres", *options], **quiet)

    def connect():
        try:
            return psycopg.connect(host="127.0.0.1", port=port, user="lab", dbname="postgres")
        except psycopg.OperationalError:
            return None

    wait_until(connect)
    connection = connect()
    connection.autocommit = True
    for database in ("prefect", "mlflow"):
        connection.cursor().execute(f"CREATE DATABASE {database}")
    connection.close()
    yield f"lab@127.0.0.1:{port}"
    server.terminate()
    server.wait()
    shutil.rmtree(data)


@pytest.fixture(scope="module")
def ui(tmp_path_factory, postgres):
    """On PostgreSQL where there is one, else on SQLite."""
    settings = {}
    if postgres is not None:
        address = postgres.replace("@", f":{PASSWORD}@")  # PostgreSQL, trusting as it is here, takes any
        settings["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = f"postgresql+asyncpg://{address}/prefect"
        settings["MLFLOW_TRACKING_URI"] = f"postgresql://{address}/mlflow"
    ui = Ui(tmp_path_factory.mktemp("ui") / "toy", **settings)
    yield ui
    ui.process.send_signal(signal.SIGINT)
    ui.process.wait()


def form(*noise_ratios: float, **others):
    return opening_form().model_dump() | {"noise_ratios": list(noise_ratios), "seeds": [1], **others}


def began(noise):
    return f"began score@{variant_of(noise)} {noise}"


def ended(noise):
    return f"ended score@{variant_of(noise)} {noise}"


def test_reproduce_is_one_task_per_stage_of_the_dvc_graph_and_independent_stages_run_at_the_same_time(ui):
    independent = ("classifier@reward", "classifier@scorer")
    holds = [ui.sign(f"hold-{stage}") for stage in independent]
    run = ui.submit("reproduce/reproduce", target="report", parallelism=2)
    wait_until(lambda: all(f"began {stage} {NOISE}" in ui.events() for stage in independent))
    for hold in holds:
        hold.unlink()
    assert ui.finish(run).is_completed(), ui.log(run)
    stages = {"subset", "classifier@reward", "classifier@scorer", "tokenize", "generator", "report"}
    wait_until(lambda: ui.tasks(run) == dict.fromkeys(stages, "Completed"))  # Prefect hears of tasks after the flow
    events = ui.events()
    assert events.index(f"ended generator {NOISE}") < events.index(f"began report {NOISE}")


def test_a_sweep_goes_on_beside_a_failing_cell_and_running_it_again_does_only_what_is_missing(ui):
    fail, hold = ui.sign("fail-0.5"), ui.sign("hold-0.75")
    wanted = json.dumps(form(0.0, 0.5, 0.75, parallelism=3))
    command = ui.start("-m", "prefect", "deployment", "run", "ablation-sweep/ablation-sweep", "-p", f"form={wanted}")
    assert command.wait() == 0
    (run,) = [r.id for r in ui.client.read_flow_runs() if "form" in r.parameters]
    wait_until(lambda: began(0.75) in ui.events())
    stage, dvc = ui.stage_and_dvc()
    dvc.kill()
    wait_until(lambda: not stage.is_running())  # which the killed DVC had started
    hold.unlink()
    state = ui.finish(run)
    assert state.is_failed() and "1 of 3 cells" in state.message
    tasks = ui.tasks(run)
    assert [tasks[variant_of(noise)] for noise in (0, 0.5, 0.75)] == ["Completed", "Failed", "Completed"]
    assert "this cell was told to fail" in ui.log(run)
    table = {plain(row["cell"]): row for row in ui.table(rows=3)}
    assert table[variant_of(0.5)]["state"] == "failed"
    assert table[variant_of(0.75)]["fid/scorer"] == "9.25"

    shown = ui.artifacts(run)
    assert len(shown["image"]) == 2  # the grid, and the answer
    assert all(base64.b64decode(i.partition("base64,")[2]).startswith(b"\x89PNG") for i in shown["image"])
    links = "\n".join(shown["markdown"])  # as which Prefect keeps links
    printed = {name: url for name, url in ui.printed.items() if "dashboard" in name.lower()}
    assert printed and all(url in links for url in printed.values())

    fail.unlink()
    before = len(ui.events())
    again = ui.submit("ablation-sweep/ablation-sweep", form=form(0.0, 0.5, 0.75))
    assert ui.finish(again).is_completed(), ui.log(again)
    assert ui.events()[before:] == [began(0.5), ended(0.5)]
    tasks = ui.tasks(again)
    assert [tasks[variant_of(noise)] for noise in (0, 0.5, 0.75)] == ["Skipped", "Completed", "Skipped"]


def test_a_cancelled_run_and_a_killed_worker_leave_no_process_and_another_run_resumes_the_sweep(ui):
    hold = ui.sign("hold-0.2")
    run = ui.submit("ablation-sweep/ablation-sweep", form=form(0.2))
    wait_until(lambda: began(0.2) in ui.events())
    ui.client.set_flow_run_state(run, Cancelling())
    wait_until(lambda: ui.state(run).is_cancelled())
    wait_until(lambda: not ui.stages())
    wait_until(lambda: ui.tasks(run)[variant_of(0.2)] in ("Crashed", "Cancelled"))

    run = ui.submit("ablation-sweep/ablation-sweep", form=form(0.2))
    wait_until(lambda: ui.events().count(began(0.2)) == 2)
    (worker,) = [p for p in ui.processes() if {"worker", "pipelines.processes"} & {*command_line(p)} == {"worker"}]
    wait_until(lambda: [tracked["status"] for tracked in ui.open_in_mlflow()] == ["RUNNING"])  # the sweep's own
    worker.kill()
    wait_until(lambda: not ui.stages())
    wait_until(lambda: ui.state(run).is_crashed())
    wait_until(lambda: ui.tasks(run)[variant_of(0.2)] == "Crashed")
    wait_until(lambda: not ui.open_in_mlflow())

    hold.unlink()
    run = ui.submit("ablation-sweep/ablation-sweep", form=form(0.2))  # `make ui` starts another worker
    assert ui.finish(run).is_completed(), ui.log(run)
    assert ui.events()[-2:] == [began(0.2), ended(0.2)]


def test_a_run_of_which_nobody_saw_the_end_crashes_by_its_heartbeats_and_a_long_one_beside_it_does_not(ui):
    holds = [ui.sign("hold-0.22"), ui.sign("hold-0.23")]
    long = ui.submit(SWEEP, form=form(0.22))
    wait_until(lambda: began(0.22) in ui.events())
    known = ui.runs()
    command = ui.start("-m", "pipelines.flows.ablation_sweep", "--noise-ratios", "0.23", "--seeds", "1")
    wait_until(lambda: began(0.23) in ui.events())
    (run,) = ui.runs() - known
    command.kill()
    command.communicate()
    assert ui.state(run).is_running()
    wait_until(lambda: ui.state(run).is_crashed())
    assert "has not been heard of for 90 s" in ui.state(run).message
    wait_until(lambda: ui.tasks(run)[variant_of(0.23)] == "Crashed")
    wait_until(lambda: len(ui.open_in_mlflow()) == 1)
    assert ui.state(long).is_running() and ui.tasks(long)[variant_of(0.22)] == "Running"
    for hold in holds:
        hold.unlink()
    assert ui.finish(long).is_completed(), ui.log(long)


def test_deployments_that_are_registered_again_leave_the_automation_of_the_heartbeats_as_it_is(ui):
    (before,) = ui.client.read_automations_by_name(lost.NAME)
    kept = send("GET", f"{ui.api}/automations/{before.id}").json()  # with the time of its last change
    command = ui.start("-m", "prefect", "--no-prompt", "deploy", "--all")
    told, _ = command.communicate()
    assert command.returncode == 0, told
    assert send("GET", f"{ui.api}/automations/{before.id}").json() == kept
    older = before.model_dump(include={"name", "actions", "trigger"}) | {"enabled": False}
    older["trigger"]["within"] = 15
    ui.client.update_automation(before.id, AutomationCore.model_validate(older))
    command = ui.start("-m", "prefect", "--no-prompt", "deploy", "--all")
    told, _ = command.communicate()
    assert command.returncode == 0, told
    (renewed,) = ui.client.read_automations_by_name(lost.NAME)
    assert renewed.trigger == before.trigger and not renewed.enabled
    ui.client.resume_automation(before.id)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise_ratios", [1.5]),
        ("reward_terms", ["mse+beauty"]),
        ("profile", "mnits"),
    ],
)
def test_bad_input_is_refused_at_submission_with_the_fields_name(ui, field, value):
    with pytest.raises(PrefectHTTPStatusError) as caught:
        ui.submit(SWEEP, form=form(0.0, **{field: value}))
    assert f"Validation failed for field 'form.{field}" in caught.value.response.text


def test_a_list_that_was_emptied_is_refused_and_not_the_whole_default_sweep(ui):
    emptied = {name: value for name, value in form(0.0).items() if name != "noise_ratios"}
    with pytest.raises(PrefectHTTPStatusError, match="409") as caught:
        ui.submit(SWEEP, form=emptied)
    assert "'noise_ratios' is a required property" in caught.value.response.text


@needs_browser
def test_the_form_opens_in_a_browser_with_every_field_in_its_order_and_tells_of_an_emptied_list(ui, tmp_path):
    titles = [name.replace("_", " ").title() for name in SweepForm.model_fields]
    known = ui.runs()

    def text():
        return browser.find_element("tag name", "body").text

    def fields():
        lines = text().replace(" (Optional)", "").splitlines()
        return [title for title in dict.fromkeys(lines) if title in titles]

    with open_browser(tmp_path / "chromium") as browser:
        browser.set_window_size(1200, 2200)
        browser.get(f"{ui.prefect}/deployments/deployment/{ui.deployment(SWEEP)}/run")
        try:
            wait_until(lambda: fields() == titles, 120)
        finally:
            browser.save_screenshot(picture("prefect-form", tmp_path))
        optional = [line for line in text().splitlines() if line.endswith("(Optional)")]
        assert optional == ["Steps (Optional)", "Profile (Optional)", "dry_run (Optional)"]
        shown = wait_until(lambda: browser.execute_script(FIRST_LIST), 120)
        assert shown == ["0", "0.25", "0.5", "0.75", "0.95"]
        wait_until(lambda: browser.execute_script(EMPTY_FIRST_LIST) == 0 and "No items in this list" in text(), 120)
        browser.execute_script(SUBMIT)
        wait_until(lambda: "'noise_ratios' is a required property" in text(), 120)
    assert ui.runs() == known


def test_what_another_page_sends_is_refused_however_it_is_sent(ui):
    known = ui.runs()
    run = json.dumps({"parameters": {"form": form(0.0)}})
    create = f"{ui.api}/deployments/{ui.deployment(SWEEP)}/create_flow_run"
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    typed = {"Content-Type": "application/json"}
    for origin in (FOREIGN, "null", "http://127.0.0.1:1"):
        preflight = send("OPTIONS", create, Origin=origin, **asks)
        assert preflight.status_code == 403 and "access-control-allow-origin" not in preflight.headers
        for headers in (typed, {"Content-Type": "text/plain"}, {}):
            assert send("POST", create, run, Origin=origin, **headers).status_code == 403
        assert send("GET", f"{ui.api}/health", Origin=origin).status_code == 403
    for headers in (typed, {}):  # a name that was made to lead here: to the browser the page is the server's own
        assert send("POST", create, run, Host="evil.example:4200", **headers).status_code == 400
    assert ui.runs() == known
    # the same by the server's own pages and by programs, which name no origin, is taken
    port = ui.prefect.rpartition(":")[2]
    count = f"{ui.api}/flow_runs/count"
    for origin in (f"http://127.0.0.1:{port}", f"http://localhost:{port}"):
        assert send("OPTIONS", create, Origin=origin, **asks).headers["access-control-allow-origin"] == origin
        assert send("POST", count, "{}", Origin=origin, Host=f"localhost:{port}", **typed).json() == len(known)
    assert send("POST", count, "{}").json() == len(known)


def test_another_page_opens_no_websocket_either(ui):
    events = ui.api.replace("http", "ws") + "/events/in"
    with pytest.raises(InvalidStatus) as caught:
        connect(events, origin=FOREIGN, proxy=None)
    assert caught.value.response.status_code == 403
    connect(events, origin=ui.prefect, proxy=None).close()


@needs_browser
def test_a_page_that_is_open_in_the_browser_starts_no_run(ui, tmp_path):
    known = ui.runs()
    create = f"{ui.api}/deployments/{ui.deployment(SWEEP)}/create_flow_run"
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "evil.html").write_text(PAGE % (json.dumps({"parameters": {"form": form(0.0)}}), create))
    pages = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    with open_browser(tmp_path / "chromium") as browser:
        browser.get(f"http://127.0.0.1:{pages.server_port}/evil.html")
        assert wait_until(lambda: browser.title, 120) == "answered"  # which tells the page nothing of the answer
    pages.shutdown()
    assert ui.runs() == known


def test_mlflow_refuses_other_pages_and_other_names(ui):
    mlflow = ui.printed["MLflow"]
    create, port = f"{mlflow}/api/2.0/mlflow/experiments/create", mlflow.rpartition(":")[2]
    experiment = json.dumps({"name": "by another page"})
    for headers in ({"Origin": FOREIGN}, {"Host": f"evil.example:{port}"}, {"Host": f"10.evil.example:{port}"}):
        assert send("POST", create, experiment, **{"Content-Type": "application/json"}, **headers).status_code == 403
    assert send("GET", f"{mlflow}/", Host=f"localhost:{port}").status_code == 200


def test_passwords_stand_neither_on_command_lines_nor_in_what_is_printed_and_logged(ui, postgres):
    if postgres is None:
        pytest.skip("no PostgreSQL here (initdb and postgres on the PATH), whose URLs have passwords")
    lines = [word for process in ui.processes() for word in command_line(process)]
    assert "pipelines.flows.server" in lines and not [word for word in lines if PASSWORD in word]
    logs = [*(ui.work / "ui").glob("*.log")]
    assert len(logs) == 3 and not [log for log in logs if PASSWORD in log.read_text()]
    assert not [name for name, told in ui.printed.items() if PASSWORD in told]


def test_a_server_with_a_login_lets_in_who_knows_it(tmp_path):
    login = f"lab:{PASSWORD}"
    program = "import contextlib, time; from pipelines.flows import ui; env = dict(ui.environment())\n"
    program += "with contextlib.ExitStack() as stack:\n"
    program += "    service = ui.start_prefect(env, stack); service.wait_for(env['PREFECT_API_URL'] + '/health')\n"
    program += "    ui.create_pools(env)\n"
    program += (
        "    print(ui.run(['prefect', 'work-pool', 'ls'], env)); print(env['PREFECT_API_URL'], flush=True); input()\n"
    )
    settings = {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_API_AUTH_STRING": login, "VAPI_WORK": str(tmp_path)}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))} | settings
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        *pools, api = until_url(server.stdout)
        assert "local" in "".join(pools)
        assert send("POST", f"{api}/flow_runs/count", "{}").status_code == 401
        assert send("GET", f"{api}/health").status_code == 200
        with SyncPrefectClient(api=api, auth_string=login) as client:
            assert client.read_work_pool("local").type == "process"
        server.communicate("\n")
    assert server.returncode == 0


def test_schedules_make_runs_that_run_and_a_dry_run_prints_its_commands_and_runs_nothing(ui):
    deployment = ui.client.read_deployment_by_name("ablation-sweep/ablation-sweep")
    assert deployment.parameters == {"form": opening_form().model_dump()}  # of a run that is given none
    ui.client._client.patch(
        f"/deployments/{deployment.id}", json={"parameters": {"form": form(0.25), "dry_run": True}}
    ).raise_for_status()
    known = {r.id for r in ui.client.read_flow_runs()}
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=10)
    interval = IntervalSchedule(interval=timedelta(hours=1), anchor_date=soon)
    cron = CronSchedule(cron="* * * * *")
    ui.client.create_deployment_schedules(deployment.id, [(interval, True), (cron, True)])

    def scheduled():
        filters = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
        runs = ui.client.read_flow_runs(deployment_filter=filters, sort=FlowRunSort.EXPECTED_START_TIME_ASC)  # 200
        return [r for r in runs if r.id not in known and r.auto_scheduled]

    before = ui.events()
    try:
        wait_until(lambda: any(r.state.is_completed() for r in scheduled()))
        (ran, *_) = [r for r in scheduled() if r.state.is_completed()]
        wait_until(lambda: f"+variants.{variant_of(0.25)}=" in ui.log(ran.id))  # logs arrive a little later
        assert ui.events() == before
        times = {run.expected_start_time for run in scheduled()}
        assert len([t for t in times if t.second == t.microsecond == 0]) >= 2  # cron's, and not only the next one
        assert len([t for t in times if (t - soon).total_seconds() % 3600 == 0]) >= 2  # the interval's
    finally:  # the tests behind this one have the deployment as it was
        for schedule in ui.client.read_deployment_schedules(deployment.id):
            ui.client.delete_deployment_schedule(deployment.id, schedule.id)
        for run in scheduled():  # the server may plan some after their schedule is gone
            if not run.state.is_final():
                ui.client.delete_flow_run(run.id)
        own = {"parameters": deployment.parameters}
        ui.client._client.patch(f"/deployments/{deployment.id}", json=own).raise_for_status()


def test_both_servers_keep_their_records_in_postgresql(ui, postgres):
    if postgres is None:
        pytest.skip("no PostgreSQL here (initdb and postgres on the PATH): the servers above ran on SQLite")
    import psycopg

    def count(database, table):
        user, _, address = postgres.partition("@")
        host, _, port = address.partition(":")
        connection = psycopg.connect(host=host, port=port, user=user, dbname=database)
        cursor = connection.cursor()
        cursor.execute(f"SELECT count(*) FROM {table}")
        (rows,) = cursor.fetchone()
        connection.close()
        return rows

    assert count("prefect", "flow_run") == len(ui.client.read_flow_runs(limit=200)) > 0
    assert count("mlflow", "experiments") > 0


class Machine:
    """A clone that is a machine of its own: its working files, its DVC cache, and a worker for cells."""

    def __init__(self, ui: Ui, root: Path):
        self.root, self.work = root, root / WORK
        self.work.mkdir(exist_ok=True)
        self.log = self.work / "worker.log"
        environment = ui.environment | {"MLFLOW_TRACKING_URI": ui.printed["MLflow"], "VAPI_WORK": str(self.work)}
        command = [sys.executable, "-m", "pipelines.cli", "worker", "--limit", "1", "--name", root.name]
        with self.log.open("w") as log:
            self.worker = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log)

    def events(self) -> list[str]:
        path = self.work / "stages.log"
        return path.read_text().splitlines() if path.exists() else []

    def hold(self, *ratios: float) -> None:
        for ratio in ratios:
            (self.work / f"hold-{ratio}").touch()

    def go_on(self, *ratios: float) -> None:
        """Lets cells of these noise ratios go on, without any all of them."""
        for hold in [self.work / f"hold-{ratio}" for ratio in ratios] or self.work.glob("hold-*"):
            hold.unlink()


def git(root: Path, *arguments: str) -> str:
    options = ["-c", "user.name=toy", "-c", "user.email=toy@example.com"]
    command = ["git", *options, *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def second(ui, tmp_path_factory):
    """A clone as another machine has one; the first has remotes of git and DVC now."""
    root, folder = ui.root, tmp_path_factory.mktemp("shared")
    git(folder, "init", "--quiet", "--bare", "origin.git")
    git(root, "remote", "add", "origin", str(folder / "origin.git"))
    (root / ".dvc/config").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {folder}/store\n")
    git(root, "commit", "-qam", "remotes")
    git(root, "push", "-q", "origin", "HEAD")
    git(folder, "clone", "--quiet", "origin.git", "second")
    return folder / "second"


def test_a_sweep_on_two_machines_is_that_of_one_though_a_worker_is_killed_and_nothing_is_run_twice(ui, second):
    ratios, root = (0.31, 0.32, 0.33, 0.34), second
    git(ui.root, "commit", "-q", "--allow-empty", "-m", "not pushed")
    asked = form(*ratios, parallelism=4, on_workers=True)
    state = ui.finish(ui.submit(SWEEP, form=asked))
    assert state.is_failed() and "git push origin HEAD" in state.message
    git(ui.root, "push", "-q", "origin", "HEAD")

    one, other = Machine(ui, ui.root), Machine(ui, root)
    one.hold(*ratios)
    other.hold(*ratios)
    run = ui.submit(SWEEP, form=asked)
    (taken,) = wait_until(lambda: [ratio for ratio in ratios if began(ratio) in other.events()])
    other.go_on(taken)
    wait_until(lambda: ended(taken) in other.events())
    wait_until(lambda: [e for e in other.events() if e in {began(ratio) for ratio in ratios} - {began(taken)}])
    for process in psutil.process_iter():  # as by a power cut: nobody is told
        if works_in(process, root):
            with suppress(psutil.NoSuchProcess):  # some end with those that started them
                process.kill()
    other.worker.wait()
    one.go_on()
    assert ui.finish(run).is_completed(), ui.log(run)
    assert ui.tasks(run).items() >= {variant_of(ratio): "Completed" for ratio in ratios}.items()
    table = {plain(row["cell"]): row for row in ui.table(rows=4)}
    assert {name: row["fid/scorer"] for name, row in table.items()} == {variant_of(r): f"{10 - r:.4g}" for r in ratios}
    finished = [[e for e in machine.events() if e in map(ended, ratios)] for machine in (one, other)]
    assert len(finished[1]) == 1 and sorted(finished[0] + finished[1]) == [ended(ratio) for ratio in ratios]
    assert not [e for e in other.events() if "generator" in e]  # which it had from the first
    wait_until(lambda: not [p for p in psutil.process_iter() if works_in(p, root)])

    for ref in git(ui.root, "for-each-ref", "--format=%(refname)", "refs/exps").split():
        git(ui.root, "update-ref", "-d", ref)  # as a third machine, which knows of nothing
    before = len(one.events())
    again = ui.submit(SWEEP, form=asked)
    assert ui.finish(again).is_completed(), ui.log(again)
    assert set(ui.tasks(again).values()) == {"Skipped"} and len(one.events()) == before

    one.hold(0.35)
    run = ui.submit(SWEEP, form=form(0.35, on_workers=True))
    wait_until(lambda: began(0.35) in one.events())
    ui.client.set_flow_run_state(run, Cancelling())
    wait_until(lambda: ui.state(run).is_cancelled())
    wait_until(lambda: not ui.stages())
    (cell,) = [r for r in ui.client.read_flow_runs() if plain(r.name) == variant_of(0.35)]
    assert ui.finish(cell.id).is_cancelled()
    one.worker.terminate()
    one.worker.wait()


@needs_slurm
def test_a_job_of_slurm_is_a_worker_that_runs_a_cell_and_ends_when_no_more_come(ui, second):
    (second / ".venv").symlink_to(sys.prefix)
    run = ui.submit(SWEEP, form=form(0.41, on_workers=True))
    wait_until(
        lambda: [r for r in ui.client.read_flow_runs() if r.parameters.get("stage") == f"score@{variant_of(0.41)}"]
    )
    with slurm() as cluster:
        settings = {"MLFLOW_TRACKING_URI": ui.printed["MLflow"], "PYTHONPATH": str(second)}
        command = ["sbatch", "--wait", str(ROOT / "scripts/slurm/worker.sbatch"), "--idle-minutes", "0.1"]
        environment = ui.environment | settings | cluster
        job = subprocess.run(command, cwd=second, env=environment, check=False, timeout=SECONDS)
    (log,) = second.glob("slurm-worker-*.log")
    assert job.returncode == 0 and "the worker ends" in log.read_text(), log.read_text()
    (events,) = second.glob(".work/*/stages.log")  # by the node's name
    assert ended(0.41) in events.read_text()
    assert ui.finish(run).is_completed(), ui.log(run)


def test_ctrl_c_stops_everything(ui):
    assert len(ui.processes()) > 3
    ui.process.send_signal(signal.SIGINT)
    assert ui.process.wait(timeout=SECONDS) == 0
    assert ui.processes() == []
