"""What stages report, and how it comes to MLflow: one live run per key, whatever happened before.

A run's key is a hash of its stage, its parameters and the keys of its upstream; a stage that runs replaces the live run
of the same key, and a stage that DVC takes from its cache leaves the run that made it in place. Metrics go to a journal
(see `journal.py`) and from there, in batches, to MLflow, beside the stage's own work (see `uploader.py`). Where the
server is away the stage goes on; `vapi upload` sends the journals later. MLflow itself is the
business of `mlflow_runs.py`.

Scores, which other stages give to a run, are kept beside its journal, and are those of its outputs: a run made anew has
them too if it ended with the same outputs. The run of a killed stage ends as KILLED: its own process that sends closes
it, or whoever talks to MLflow next.
"""

import getpass
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.repository.git import git
from pipelines.tracking import uploader
from pipelines.tracking.journal import JOURNALS, Entry, Header, Journal, Scores, Status, all_journals
from pipelines.tracking.masking import masked
from pipelines.tracking.mlflow_runs import (
    EXPERIMENT_TAG,
    LONGEST_PARAM,
    MachineLoad,
    RemoteRun,
    connect,
    is_refused,
    summary,
)
from vapi_core.errors import FileError

FLUSH_SECONDS = 5.0
PREVIEW, SAMPLED, ANSWER = "base and now", "samples", "answer"  # pictures of alignments, of image sets, of sweeps
KILLED = "the stage was killed"
UPLOAD_COMMAND = "vapi upload"
LATER, SCORES_LATER = f"To send it later: {UPLOAD_COMMAND}", f"To send the scores later: {UPLOAD_COMMAND}"


def stage_key(stage: str, params: dict[str, Any], upstream: Iterable[str]) -> str:
    """Identity of a run: hash of its stage, all parameters that determine it, and the keys of what it builds on."""
    content = json.dumps([stage, params, sorted(upstream)], sort_keys=True, default=list)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def parent_key(experiment: str, parent: str) -> str:
    """Identity of a parent run, which has no result of its own."""
    return stage_key("parent", {"experiment": experiment, "name": parent}, [])


def flatten(params: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as dotted names and text, as MLflow wants them."""
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)[:LONGEST_PARAM]
    return flat


class StageRun:
    """What a stage reports to, from the process of rank 0."""

    def __init__(self, journal: Journal, header: Header, advice: str = ""):
        self._journal = journal
        self._artifacts: list[str] = []
        self._tables: dict[str, list[dict[str, Any]]] = {}
        self._children: list[str] = []
        journal.live()
        journal.begin(header, advice=advice)
        self._uploader = uploader.start(follow, journal.directory)

    def log(self, metrics: dict[str, float], step: int = 0) -> None:
        """Reports metrics of one step."""
        self._journal.append(Entry(now(), step, {name: float(value) for name, value in metrics.items()}))

    def image(self, name: str, path: Path, step: int) -> None:
        """Reports a PNG of one step; MLflow shows those of a name as one picture over steps."""
        file = self._journal.keep_image(path, "images", name, step)
        self._journal.append(Entry(now(), step, {}, {name: file}))

    def artifact(self, path: Path) -> None:
        """Attaches a file, sent when the run ends."""
        self._artifacts.append(str(path))
        self._journal.update(artifacts=self._artifacts)

    def table(self, name: str, rows: list[dict[Any, Any]]) -> None:
        """Attaches a table, which MLflow shows as one, sent when the run ends."""
        self._tables[name] = rows
        self._journal.update(tables=self._tables)

    def made(self, outputs: str) -> None:
        """Tells the hash of what the stage has made, by which it is known whether earlier scores are of the same."""
        self._journal.update(outputs=outputs)

    def adopt(self, keys: list[str]) -> None:
        """Makes this run the parent of the runs of these keys when it ends; one that has a parent gets a link only."""
        self._children += keys
        self._journal.update(children=self._children)

    def end(self, status: Status) -> None:
        """Sends what is left and closes the run."""
        self._journal.update(status=status, end_time=now())
        problem = self._uploader.finish()
        if problem is None:
            self._journal.update(uploaded=True)
        else:
            kept = f"The metrics are kept in {self._journal.directory}; to send them later: {UPLOAD_COMMAND}"
            print(f"warning: {problem}. {kept}", file=sys.stderr)
        self._journal.rest()


def journal_of(directory: str | Path) -> Journal:
    return Journal(Path(directory).parent, Path(directory).name)


def follow(directory: Path, over: Callable[[float], bool]) -> str | None:
    """Creates the run of a journal, sends what comes, and closes it; returns what went wrong, None if nothing did.

    One failure ends it: no stall at each flush. The runs of other stages that were killed are closed too.

    Args:
        over: waits so many seconds, or until nothing more will come, and says whether it is so.
    """
    journal = journal_of(directory)
    try:
        client = connect()
        with journal.sending(wait=True):  # of an attempt that was killed, the run is closed first
            if over(0.0) and journal.state()["status"] == "RUNNING":
                return KILLED  # its next attempt may have begun: a run made now would be a second one
            run, sent, load = remote_run(client, journal), 0, MachineLoad()
            report(send_all(client, killed_journals()))
            while True:
                last = over(FLUSH_SECONDS)
                entries, sent = journal.entries(sent)
                run.send(entries)
                if found := load.sample():
                    journal.append_system(found)
                    run.send([found])
                if not last:
                    continue
                state = journal.state()
                if state["status"] == "RUNNING":  # nobody else makes a run of this key before `sending` is over
                    run.close(state | {"status": "KILLED", "end_time": journal.last_sign()})
                    with journal.unattended() as unattended:  # else the next attempt has begun: the journal is its own
                        if unattended:
                            journal.update(status="KILLED", end_time=journal.last_sign(), uploaded=True)
                    return KILLED
                run.close(state, journal.scores().values())
                return None
    except Exception as error:  # whatever the client raises, the stage's result is not its business
        return what_failed(error)


def what_failed(error: Exception) -> str:
    if isinstance(error, FileError):
        return str(error)
    if is_refused(error):
        return f"MLflow refuses what the run reports ({summary(error)})"
    return f"the tracking server is away ({summary(error)})"


@contextmanager
def stage_run(
    *,
    experiment: str,
    name: str,
    key: str,
    params: dict[str, Any],
    tags: dict[str, str],
    parent: str | None = None,
    advice: str = "",
    dataset: dict[str, str] | None = None,
) -> Iterator[StageRun]:
    """A run for the duration of a block: FINISHED at its end, FAILED on an error, KILLED on an interrupt.

    Args:
        advice: what to tell of a process that is killed without a word, which may be for want of memory.
        dataset: what it learns from (`journal.Header`).
    """
    start = now()
    if experiment_name := os.environ.get("DVC_EXP_NAME"):
        tags = {**tags, EXPERIMENT_TAG: experiment_name}
    tags = {**tags, **source_tags()}
    header = Header(experiment, name, key, start, flatten(params), tags, parent, dataset)
    run = StageRun(Journal(JOURNALS, key), header, advice)
    try:
        yield run
    except KeyboardInterrupt:
        run.end("KILLED")
        raise
    except BaseException:
        run.end("FAILED")
        raise
    run.end("FINISHED")


def add_scores(
    scores: dict[str, dict[str, float]],
    headers: dict[str, Header],
    outputs: dict[str, str] | None = None,
    source: str = "score",
    images: dict[str, list[tuple[str, Path, int]]] | None = None,
) -> None:
    """Gives final scores to the runs of other stages, instead of earlier ones of the same source.

    Args:
        scores: key of a run -> its scores.
        headers: key -> what to make the run of where neither a live run nor a journal of it is left.
        outputs: key -> hash of the stage's outputs that the scores are of.
        source: the stage, or the part of one, that has found them out.
        images: key -> name, PNG and step of pictures of these outputs.
    """
    waiting: list[Journal] = []
    for key, metrics in scores.items():
        journal = Journal(JOURNALS, key)
        try:
            if not journal.exists:  # a run that is still there keeps all it has
                journal.begin(headers[key], status="FINISHED", end_time=now(), only_scores=True)
            pictures = [
                Entry(now(), step, {}, {name: journal.keep_image(path, "scored", name, step)})
                for name, path, step in (images or {}).get(key, [])
            ]
            found = Scores(now(), (outputs or {}).get(key, ""), metrics, pictures)
            journal.keep_scores(source, found)
            journal.update(uploaded=False, outputs=found.outputs)
            waiting.append(journal)
        except FileError as error:
            report(Report(problems=[str(error)]), SCORES_LATER)
    if not uploader.send_beside([journal.directory for journal in waiting]):
        report(upload(waiting), SCORES_LATER)


@dataclass
class Report:
    """What came of sending journals: the server may be away, and some may be refused or damaged."""

    away: str | None = None
    problems: list[str] = field(default_factory=list)


def report(result: Report, later: str = LATER) -> None:
    """Tells on stderr what was not sent."""
    for problem in (*([result.away] if result.away else []), *result.problems):
        print(f"warning: {problem}{'' if problem.endswith('.') else '.'} {later}", file=sys.stderr)


def remote_run(client: Any, journal: Journal) -> RemoteRun:
    """The run of a journal, made anew; or, of one that has scores only, the one that is there."""
    header, anew = journal.header(), not journal.state().get("only_scores")
    parent = parent_key(header.experiment, header.parent or "")
    return RemoteRun(client, header, parent, journal.directory, replace=anew)


def upload(journals: list[Journal]) -> Report:
    """Sends whole journals, each replacing the live run of its key."""
    try:
        client = connect()
    except Exception as error:  # as above
        return Report(away=what_failed(error))
    return send_all(client, journals)


def send_all(client: Any, journals: list[Journal]) -> Report:
    """As `upload`. One that is refused or damaged is told and passed over; a server that is away ends it."""
    result = Report()
    for journal in journals:
        try:
            with journal.sending() as ours:
                if ours and send_whole(client, journal):
                    print(f"sent {journal.header().name}", file=sys.stderr)
        except FileError as error:
            result.problems.append(str(error))
        except Exception as error:  # as above
            problem = what_failed(error)
            if not is_refused(error):
                result.away = problem
                break
            result.problems.append(f"{journal.header().name}: {problem}. {journal.remedy}")
    return result


def send_whole(client: Any, journal: Journal) -> bool:
    """Sends a journal unless a stage reports there; says whether it did. That of a killed stage ends as KILLED, once it
    is sent: until then whoever looks for killed stages finds it."""
    with journal.unattended() as unattended:
        _, state = before = journal.header(), journal.state()
        if state["status"] == "RUNNING":
            if not unattended:
                return False
            state = state | {"status": "KILLED", "end_time": journal.last_sign()}
    run, entries, scores = remote_run(client, journal), journal.entries()[0], journal.scores()
    own = {
        name for found in scores.values() for name in found.metrics
    }  # which earlier versions wrote among the metrics
    run.send([replace(e, metrics={n: v for n, v in e.metrics.items() if n not in own}) for e in entries])
    run.send(journal.system())
    run.close(state, scores.values())
    with journal.unattended() as unattended:
        if unattended and (journal.header(), journal.state()) == before:  # else there is more to send
            journal.update(**state | {"uploaded": True})
    return True


def killed_journals() -> list[Journal]:
    """Those whose stage is gone without a word."""
    killed = []
    for journal in all_journals(JOURNALS)[0]:
        if journal.state()["status"] == "RUNNING":
            with journal.unattended() as unattended:
                if unattended:
                    killed.append(journal)
    return killed


def close_killed() -> None:
    """Ends the runs of killed stages, for commands that show runs; talks to MLflow only if there are any."""
    if killed := killed_journals():
        report(upload(killed))


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def source_tags() -> dict[str, str]:
    """Who runs what, and from which commit, in MLflow's own tags."""
    module = Path(sys.argv[0])
    command = [module.parent.name if module.stem == "__main__" else module.stem, *sys.argv[1:]]
    tags = {"mlflow.source.type": "LOCAL", "mlflow.source.name": masked(shlex.join(command))}
    with suppress(KeyError, OSError):  # a number without a name
        tags["mlflow.user"] = getpass.getuser()
    with suppress(FileError):  # a run need not have a commit
        asked = {
            "commit": ("rev-parse", "--verify", "--quiet", "HEAD"),
            "branch": ("symbolic-ref", "--quiet", "--short", "HEAD"),  # none in the folder of a DVC experiment
            "repoURL": ("config", "--get", "remote.origin.url"),
        }
        told = {name: masked(git(Path(), *question).strip()) for name, question in asked.items()}
        if told["commit"]:
            changed = git(Path(), "diff", "--name-only", "HEAD", "--", ".", ":!dvc.lock", ":!reports")
            told["dirty"] = str(bool(changed))
            tags |= {f"mlflow.source.git.{name}": value for name, value in told.items() if value}
    return tags
