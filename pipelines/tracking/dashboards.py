"""Preset dashboards of MLflow: which charts stand side by side when the experiment of a profile is opened.

`vapi dashboards` registers them for the profile of params.yaml and prints their URLs. They stand
in the menu *Views* of the experiment's page too, from where they come back after a reload, which drops the charts
(MLflow reads no view from an address that already has its filter).
A dashboard is a view of an experiment's runs that MLflow keeps as an experiment tag, in a format that it does not
document: what is here was read off MLflow 3.17's own user interface. tests/pipelines/tracking/test_dashboards.py checks
it in a browser.
"""

import base64
import json
import os
import sys
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.config.params import short_name
from pipelines.config.variant import ABLATION, SWEEP
from pipelines.messages import one_message
from pipelines.tracking.masking import masked
from pipelines.tracking.mlflow_runs import metric_names, register_view
from pipelines.tracking.runs import ANSWER, PREVIEW, SAMPLED
from vapi_core.files import read_yaml

LOCAL_SERVER = "http://127.0.0.1:5000"
SETTINGS = ("noise_ratio", "regularizer", "regularizer_weight", "terms", "credit")
LOWER, HIGHER = "lower is better", "higher is better"


@dataclass(frozen=True)
class Section:
    """Charts under one heading, left to right."""

    name: str
    charts: list[dict[str, Any]]
    columns: int = 2  # few: a chart is wide enough beside MLflow's Assistant, too
    height: int = 360  # pixels of a chart


@dataclass(frozen=True)
class Dashboard:
    """Charts, in sections, of the runs that a filter selects; or without sections the table of these runs."""

    key: str  # in the URL, and its name in the menu Views
    runs: str  # filter of MLflow's search
    order: str  # column by which the runs are sorted
    columns: Sequence[str]  # of the table of runs
    sections: Sequence[Section] = ()
    ascending: bool = True
    group_by: str | None = None  # tag: one bar or line for all runs of the same value, their mean

    def view(self, others: Iterable[str] = ()) -> dict[str, Any]:
        """The state of MLflow's page of runs.

        Args:
            others: metrics of the runs. MLflow adds a chart of every metric that has none: they are told to be removed.
        """
        charts: list[dict[str, Any]] = [
            {"metricSectionId": section.name, "uuid": f"{section.name} {i}", "deleted": False, "isGenerated": False}
            | chart
            for section in self.sections
            for i, chart in enumerate(section.charts)
        ]
        if self.sections:
            drawn = {name for chart in charts for name in (chart.get("metricKey"), *chart.get("imageKeys", []))}
            removed = {"metricSectionId": self.sections[0].name, "deleted": True, "isGenerated": True}
            charts += [{"uuid": name, **bar(name), **removed} for name in sorted({*others} - drawn)]
            pictures = {ANSWER, PREVIEW, SAMPLED, *other_pictures(others)} - drawn
            charts += [{"uuid": name, **image(name), **removed} for name in sorted(pictures)]
        sections = [
            {
                "uuid": section.name,
                "name": section.name,
                "display": True,
                "isReordered": True,
                "columns": section.columns,
                "cardHeight": section.height,
            }
            for section in self.sections
        ]
        group = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": self.group_by}]}
        return {
            "searchFilter": self.runs,
            "orderByKey": self.order,  # by date, runs below others would be folded away and not drawn
            "orderByAsc": self.ascending,
            "selectedColumns": list(self.columns),
            "runsHiddenMode": "SHOWALL",  # else the first ten only
            "isAccordionReordered": True,  # keep our order
            "groupBy": group if self.group_by else None,
            "useGroupedValuesInCharts": True,
            **({"compareRunCharts": charts, "compareRunSections": sections} if self.sections else {}),
        }


def other_pictures(metrics: Iterable[str]) -> set[str]:
    """Names of the pictures of image sets that are drawn with other settings, from the names of their scores."""
    settings = {name.split("/")[3] for name in metrics if name.startswith("score/") and name.count("/") == 3}
    return {f"{SAMPLED} {setting}" for setting in settings}


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


def image(name: str, step: int = 0) -> dict[str, Any]:
    """The pictures of a name, of every run that has some, with a slider over their steps, at first at this one."""
    return {"type": "IMAGE", "imageKeys": [name], "step": step, "showRunParams": False}


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


def param(name: str) -> str:
    """A parameter as a column of the table of runs."""
    return f"params.`{name}`"


def metric(name: str) -> str:
    return f"metrics.`{name}`"


def dashboards_of(profile: dict[str, Any]) -> list[Dashboard]:
    """The dashboards of a profile, by the content of its params file."""
    align, score = profile["align"], profile["score"]
    every = align.get("images_every", 0)
    last = align["steps"] // every * every if every else 0
    return plan_dashboards(score["extractors"], score["geneval"] is not None, last)


def plan_dashboards(extractors: Sequence[str], geneval: bool, last: int = 0) -> list[Dashboard]:
    """The dashboards of runs that are scored with these extractors, the last of which is the main one.

    Args:
        last: step of the last picture of a training.
    """
    main = short_name(extractors[-1])
    fids = [f"score/fid/{short_name(name)}" for name in extractors]
    fid, recall, precision = f"score/fid/{main}", f"score/recall/{main}", f"score/precision/{main}"
    wanted, called = f"score/is_mean/{main}", f"IS by {main}"
    if geneval:
        wanted, called = "score/overall/geneval", "GenEval"
    elif "scorer-classifier" in extractors:
        wanted, called = "score/accuracy/scorer", "accuracy by scorer"
    settings = [param(name) for name in (*SETTINGS, "seed")]
    scores = [metric(name) for name in dict.fromkeys([fid, wanted, recall, *fids])]
    ablation = Dashboard(
        key="ablation",
        runs=f"tags.{ABLATION} LIKE '%'",  # cells, the base and the sweeps themselves
        order=f"tags.`{ABLATION}`",  # sweeps, cells, base: MLflow shows pictures of the first ten runs that have some
        ascending=False,
        columns=[*settings, *scores],
        sections=[
            Section("The best cell, and the base as a line (click it)", [image(ANSWER)], columns=1),
            Section(
                f"FID by {main}: {LOWER}",
                [
                    scatter(_param("noise_ratio"), _metric(fid)),
                    scatter(_param("regularizer_weight"), _metric(fid)),
                    contour("noise_ratio", "regularizer_weight", fid),
                ],
            ),
            Section(
                f"{called}: {HIGHER}",
                [scatter(_param(name), _metric(wanted)) for name in ("noise_ratio", "regularizer_weight")],
            ),
            Section("Settings and scores", [parallel_coordinates(SETTINGS, [fid, wanted])], columns=1, height=420),
            Section("Images", [image(PREVIEW, last), image(SAMPLED)]),
            Section("Training", [line(f"train/{name}") for name in ("reward", "ce", "entropy")], columns=3),
        ],
    )  # not grouped by settings: MLflow has no parallel coordinates and no images of groups
    methods = Dashboard(
        key="methods",
        runs=f"tags.stage = 'align' AND tags.table != '{SWEEP}'",
        order="tags.`mlflow.runName`",
        columns=[param("method"), *settings, *scores],
        sections=[
            Section(f"FID: {LOWER}", [bar(name) for name in fids]),
            Section(f"{called}, recall: {HIGHER}", [bar(wanted), bar(recall)]),
            Section(
                "Sharpening or improving: up and right is better",
                [scatter(_metric(recall), _metric(precision))],
                columns=1,
                height=420,
            ),
            Section("Training", [line("train/loss"), line("train/ce")]),
        ],
        group_by="variant",
    )
    runs = Dashboard(
        key="runs", runs="tags.variant LIKE '%'", order=metric(fid), columns=[param("method"), *settings, *scores]
    )
    return [ablation, methods, runs]


def encode(name: str, view: dict[str, Any], created: int) -> str:
    """A view as MLflow keeps those of its menu Views: with a name, and when it was made, in milliseconds since 1970."""
    state = "deflate;" + base64.b64encode(zlib.compress(json.dumps(view).encode())).decode()
    return json.dumps({"name": name, "createdAt": created, "updatedAt": created, "state": state})


def url(server: str, experiment_id: str, dashboard: Dashboard) -> str:
    """The address of a dashboard. After a reload of the page the menu Views has it."""
    mode = f"workflowType=machine_learning&{'compareRunsMode=CHART&' if dashboard.sections else ''}"
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{mode}viewStateShareKey={dashboard.key}"


def register(experiment: str, dashboards: Sequence[Dashboard]) -> str:
    """Keeps the dashboards with an experiment, which is made if there is none; returns its id."""
    others = metric_names(experiment)
    for dashboard in dashboards:
        view = encode(dashboard.key, dashboard.view(others), time.time_ns() // 1_000_000)
        experiment_id = register_view(experiment, dashboard.key, view)
    return experiment_id


@one_message
def main() -> None:
    """Registers the dashboards of params.yaml's profile, and prints their addresses."""
    params = read_yaml("params.yaml")
    dashboards = dashboards_of(params)
    experiment_id = register(params["profile"], dashboards)
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    server = uri if uri.startswith("http") else LOCAL_SERVER
    for dashboard in dashboards:
        print(masked(f"Dashboard {dashboard.key}: {url(server, experiment_id, dashboard)}"))


if __name__ == "__main__":
    sys.exit(main())
