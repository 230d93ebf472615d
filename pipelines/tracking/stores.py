"""Where runs are kept: the address of the tracking server or database, whether a database answers, where artifacts lie.

Default store: `mlflow.db` of the repository, with the artifacts in `mlruns` beside it; MLFLOW_TRACKING_URI is honoured.
MLflow writes down where artifacts lie as absolute paths, which a copy of the folder would share with the original: what
a database in the repository says of an `mlruns` elsewhere is changed to the one beside it (`keep_beside`).
"""

import os
import re
import sqlite3
from collections.abc import MutableMapping
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipelines.config.paths import REPOSITORY
from pipelines.tracking.masking import masked
from vapi_core.errors import ParameterError

DEFAULT_URI = "sqlite:///mlflow.db"
ARTIFACTS = "mlruns"  # MLflow's own default
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SECONDS = 10  # until a database counts as away, as an HTTP server does


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI or the default. The file of a database is told by its whole path: a relative one is that in
    the repository, wherever we work, and MLflow keeps what it has opened under the address that it was given."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    database = sqlite_path(uri)
    if database is None or database.is_absolute():
        return uri
    scheme, _, rest = uri.partition(":///")
    return f"{scheme}:///{REPOSITORY.absolute() / rest}"


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite URL; None of any other one."""
    found = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)
    return None if found is None else Path(found[1])


def artifacts_of(database: Path, experiment: str) -> str:
    """Where the artifacts of an experiment of an SQLite database lie: beside it."""
    return str(database.resolve().parent / ARTIFACTS / re.sub("[^A-Za-z0-9_-]", "-", experiment))


def bypass_proxies(environment: MutableMapping[str, str]) -> None:
    """Has HTTP clients, which take their proxy from the environment, reach servers on this machine without one."""
    hosts = [host for name in ("no_proxy", "NO_PROXY") for host in environment.get(name, "").split(",") if host.strip()]
    for name in ("no_proxy", "NO_PROXY"):
        environment[name] = ",".join(dict.fromkeys([*hosts, *LOOPBACK]))


def check_database(uri: str) -> None:
    """Tries once to use a database, where MLflow would try ten times within 100 s; nothing for other URIs.

    Raises:
        ParameterError: it cannot be reached or used.
    """
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme not in ("sqlite", "postgresql", "mysql", "mssql"):
        return
    import sqlalchemy

    try:
        if (path := sqlite_path(uri)) is not None:
            _check_sqlite(path)
        elif scheme != "sqlite":
            url = sqlalchemy.make_url(uri)
            known = scheme != "mssql" and "connect_timeout" not in url.query
            options = {"connect_timeout": SECONDS} if known else {}
            engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=options)
            engine.connect().close()
    except (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, OSError, ImportError, ValueError) as error:
        told = " ".join(str(getattr(error, "orig", error)).split())
        raise ParameterError("MLFLOW_TRACKING_URI", masked(f"the database {uri} cannot be used: {told}")) from None


def _check_sqlite(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=SECONDS)) as connection:
        connection.execute("BEGIN IMMEDIATE")  # which one that cannot be written refuses
        connection.rollback()


def beside(location: str, artifacts: Path) -> str | None:
    """An artifact location of MLflow's in the folder `artifacts`, if it is in a folder of that name elsewhere; else
    None.

    Args:
        location: of an experiment, FOLDER/EXPERIMENT, or a run, FOLDER/EXPERIMENT/RUN/artifacts.
    """
    url = urlsplit(location)
    if url.scheme not in ("", "file"):
        return None
    path = Path(unquote(url.path) if url.scheme else location)
    for folder in path.parents:
        if folder.name == ARTIFACTS:
            return None if folder == artifacts else str(artifacts / path.relative_to(folder))
    return None


def keep_beside(database: Path) -> None:
    """Makes the artifacts of a database those beside it, if it is in the repository, which may be a copy of another
    one.

    A run whose artifacts are not there keeps the location it has.
    """
    if database.resolve().parent != REPOSITORY.resolve():
        return
    artifacts = database.resolve().parent / ARTIFACTS
    with closing(sqlite3.connect(database, timeout=SECONDS)) as connection, connection:
        for table, column, name in (
            ("experiments", "artifact_location", "experiment_id"),
            ("runs", "artifact_uri", "run_uuid"),
        ):
            for row, location in connection.execute(f"SELECT {name}, {column} FROM {table}").fetchall():
                new = beside(location or "", artifacts)
                if new is not None and (table == "experiments" or Path(new).exists()):
                    connection.execute(f"UPDATE {table} SET {column} = ? WHERE {name} = ?", (new, row))
