import os

import torch

os.environ.setdefault("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")  # tests compare all metrics of a run
torch.set_num_threads(1)  # models this small only lose by more threads, and the more so the busier the machine

# these start many processes and take minutes; they go first, so that no worker has one left when the others have ended
LONGEST = (
    "test_kills.py",
    "test_flows.py",
    "test_dag.py",
    "test_smoke.py",
    "test_distributed.py",
    "test_benchmarks.py",
    "test_dashboards.py",
)


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))
