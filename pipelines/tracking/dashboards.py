"""Preset dashboards of MLflow: which charts stand side by side when the experiment of a profile is opened.

`vapi dashboards` registers them for the profile of params.yaml and prints their URLs.
A dashboard is a view of an experiment's runs that MLflow keeps as an experiment tag, in a format that it does not document:
what is here was read off MLflow 3.17's own user interface. tests/pipelines/tracking/test_dashboards.py checks it in a browser.
"""

import argparse
import base64
import json
import os
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.frame.launch import one_message
from pipelines.tracking.masking import masked
from pipelines.tracking.mlflow_runs import register_view
from pipelines.variants.variant import SWEEP
from vapi_core.files import read_yaml

LOCAL_SERVER = "http://127.0.0.1:5000"
FID, CLASS_ACCURACY = "score/fid {}", "score/accuracy scorer-classifier"
GENEVAL = "score/overall geneval"


@dataclass(frozen=True)
class Dashboard:
    """Charts, in sections, of the runs that a filter selects."""

    key: str  # in the URL
    runs: str  # filter of MLflow's search
    sections: dict[str, list[dict[str, Any]]]  # heading -> charts, left to right
    group_by: str | None = None  # tag: one bar or line for all runs of the same value, their mean

    def view(self) -> dict[str, Any]:
        """The state of MLflow's page of runs."""
        charts = [
            {"metricSectionId": section, "uuid": f"{section} {i}", "deleted": False, "isGenerated": False, **chart}
            for section, charts in self.sections.items()
            for i, chart in enumerate(charts)
        ]
        sections = [{"uuid": name, "name": name, "display": True, "isReordered": True} for name in self.sections]
        group = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": self.group_by}]}
        return {
            "searchFilter": self.runs,
            "orderByKey": "tags.`mlflow.runName`",  # by date, runs below others would be folded away and not drawn
            "orderByAsc": True,
            "runsHiddenMode": "SHOWALL",  # else the first ten only
            "compareRunCharts": charts,
            "compareRunSections": sections,
            "isAccordionReordered": True,  # keep our order
            "groupBy": group if self.group_by else None,
            "useGroupedValuesInCharts": True,
        }


def parallel_coordinates(params: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """A line per run through its parameters and scores."""
    return {
        "type": "PARALLEL",
        "selectedParams": list(params),
        "selectedMetrics": list(metrics),
        "showAllRuns": True,
        "runsCountToCompare": 500,
    }


def contour(x: str, y: str, metric: str) -> dict[str, Any]:
    """A score over two parameters."""
    return {"type": "CONTOUR", "xaxis": _param(x), "yaxis": _param(y), "zaxis": _metric(metric)}


def scatter(x: dict[str, str], y: dict[str, str]) -> dict[str, Any]:
    return {"type": "SCATTER", "xaxis": x, "yaxis": y, "runsCountToCompare": 500}


def bar(metric: str) -> dict[str, Any]:
    return {"type": "BAR", "metricKey": metric, "runsCountToCompare": 100}


def line(metric: str) -> dict[str, Any]:
    """A curve over steps."""
    return {
        "type": "LINE",
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "lineSmoothness": 0,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "range": {},
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
        "runsCountToCompare": 100,
    }


def _param(name: str) -> dict[str, str]:
    return {"key": name, "type": "PARAM"}


def _metric(name: str) -> dict[str, str]:
    return {"key": name, "type": "METRIC"}


def plan_dashboards(extractors: Sequence[str], geneval: bool) -> list[Dashboard]:
    """The dashboards of a profile that scores with these extractors, the last of which is the main one."""
    main = extractors[-1]
    wanted = GENEVAL if geneval else CLASS_ACCURACY if "scorer-classifier" in extractors else f"score/is_mean {main}"
    bars = [bar(FID.format(name)) for name in extractors] + [bar(f"score/is_mean {main}"), bar(wanted)]
    settings = ["noise_ratio", "regularizer", "regularizer_weight", "terms"]
    ablation = Dashboard(
        key="ablation",
        runs="tags.stage = 'align' AND params.method = 'va-pi'",
        sections={
            "Grid": [
                parallel_coordinates(settings, [FID.format(main), wanted]),
                contour("noise_ratio", "regularizer_weight", FID.format(main)),
                scatter(_param("noise_ratio"), _metric(wanted)),
            ],
            "Scores": bars,
            "Training": [line("train/reward"), line("train/ce"), line("train/entropy")],
        },
    )  # not grouped by settings: MLflow has no parallel coordinates of groups
    methods = Dashboard(
        key="methods",
        runs=f"tags.stage = 'align' AND tags.table != '{SWEEP}'",
        sections={
            "Scores": bars,
            "Sharpening or improving": [
                scatter(_metric(f"score/recall {main}"), _metric(f"score/precision {main}")),
            ],
            "Training": [line("train/loss"), line("train/ce")],
        },
        group_by="variant",
    )
    return [ablation, methods]


def encode(view: dict[str, Any]) -> str:
    """A view as MLflow keeps it."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(view).encode())).decode()


def url(server: str, experiment_id: str, dashboard: Dashboard) -> str:
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?compareRunsMode=CHART&viewStateShareKey={dashboard.key}"


def register(experiment: str, dashboards: Sequence[Dashboard]) -> str:
    """Keeps the dashboards with an experiment, which is made if there is none; returns its id."""
    for dashboard in dashboards:
        experiment_id = register_view(experiment, dashboard.key, encode(dashboard.view()))
    return experiment_id


@one_message
def main() -> None:
    argparse.ArgumentParser(description="Registers the dashboards in MLflow and prints their URLs.").parse_args()
    params = read_yaml("params.yaml")
    dashboards = plan_dashboards(params["score"]["extractors"], params["score"]["geneval"] is not None)
    experiment_id = register(params["profile"], dashboards)
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    server = uri if uri.startswith("http") else LOCAL_SERVER
    for dashboard in dashboards:
        print(masked(f"Dashboard {dashboard.key}: {url(server, experiment_id, dashboard)}"))


if __name__ == "__main__":
    sys.exit(main())
