import pytest

from pipelines.tracking.mlflow_runs import import_client


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A database with MLflow's tables and no run, to be copied: MLflow computes for more than a second to make one."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    import_client()(f"sqlite:///{path}").search_experiments()
    return path
