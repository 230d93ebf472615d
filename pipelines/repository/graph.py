"""The graph of dvc.yaml's stages, from DVC itself."""

from pathlib import Path

from pipelines.repository.lockfile import check_dvc_files
from vapi_core.errors import FileError, ParameterError, quoted


def stage_graph(target: str, root: Path = Path()) -> dict[str, list[str]]:
    """Stage -> the stages it builds on, of everything that `target` needs; each stage after those it builds on.

    Args:
        target: name of a stage, or of a group: `align` is every align@METHOD-SEED.

    Raises:
        ParameterError: there is no such stage.
        FileError: DVC cannot read dvc.yaml, dvc.lock or params.yaml; says why.
    """
    import networkx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        repo = Repo(str(root))
        graph = repo.index.graph  # edges go from a stage to what it builds on
        targets = repo.stage.collect(target, graph=graph)
    except DvcException as error:
        check_dvc_files(root)
        known = sorted({name.partition("@")[0] for name in stage_names(root)})
        if target not in known and known:
            raise ParameterError(
                "target", f"there is no stage {quoted(target)}; there are: {', '.join(known)}."
            ) from error
        raise FileError(root / "dvc.yaml", str(error)) from error
    needed = set(targets).union(*(networkx.descendants(graph, stage) for stage in targets))
    order = networkx.lexicographical_topological_sort(graph.subgraph(needed).reverse(), key=lambda s: s.addressing)
    return {stage.addressing: sorted(d.addressing for d in graph.successors(stage)) for stage in order}


def stage_names(root: Path = Path()) -> list[str]:
    """Stages and groups as dvc.yaml calls them. Raises FileError if it cannot be read."""
    from vapi_core.files import read_yaml

    return list(read_yaml(root / "dvc.yaml")["stages"])
