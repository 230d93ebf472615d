import os

os.environ.setdefault("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")  # tests compare all metrics of a run
# of torch and of NumPy's and SciPy's algebra, which read it when they are imported, here and in what tests start: work
# this small only loses by more threads, and the more so the busier the machine, as those that wait spin
os.environ["OMP_NUM_THREADS"] = "1"

# these start many processes and take minutes; they go first, so that no worker has one left when the others have ended
LONGEST = (
    "test_kills.py",
    "test_flows.py",
    "test_dag.py",
    "test_smoke.py",
    "test_distributed.py",
    "test_runs.py",
    "test_ablation_sweep.py",
    "test_search.py",
    "test_nodes.py",
    "test_uploader.py",
    "test_temporary_experiments.py",
    "test_dashboards.py",
    "test_remotes.py",
    "test_benchmarks.py",
)


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))
