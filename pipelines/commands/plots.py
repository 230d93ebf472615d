"""DVC's plots as one page that needs no network: `vapi plots`.

DVC's own page loads Vega, which draws its curves, from a server. It takes a template instead of its own: ours, in
.dvc/plots.html, has Vega in it, as the package vl-convert ships it. Once it is there, `dvc plots show` and `dvc plots
diff` use it too, by DVC's setting `plots.html_template`.
"""

import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from vapi_core.errors import FileError
from vapi_core.files import atomic_path

DVC = Path(".dvc")
TEMPLATE = "plots.html"  # relative to DVC's folder, as the setting is
VEGA_LITE = "5.21"  # DVC's plots are written for 5
NO_TABLE = "argument of type 'nonetype' is not iterable"  # DVC's warning of a JSON file beside tables that is none
PAGE = """<!DOCTYPE html>
<html>
<head>
<meta charset="utf-8">
<!-- {made_by} -->
{{refresh_tag}}
<title>DVC Plot</title>
<style>table {{border-spacing: 15px;}}</style>
<script>{scripts}</script>
</head>
<body>
{{plot_divs}}
</body>
</html>
"""


def plots(targets: Sequence[str], out: Path) -> int:
    """Writes the page of all plots, or of these files; returns DVC's exit code.

    Args:
        out: folder of the page.
    """
    use_template()
    command = [sys.executable, "-m", "dvc", "plots", "show", "--out", str(out), *targets]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    told = [line for line in result.stderr.splitlines() if NO_TABLE not in line]
    print("\n".join(told), end="\n" if told else "", file=sys.stderr)
    return result.returncode


def use_template() -> None:
    """Makes the template unless it is there, and DVC use it unless it was told to use another one.

    Raises:
        FileError: this is no repository of DVC's.
    """
    from dvc.config import Config

    if not (DVC / "config").is_file():
        raise FileError(DVC, "DVC has no repository here.", "Go to the top folder of one.")
    made_by = f"vl-convert-python {version('vl-convert-python')}, vega-lite {VEGA_LITE}"
    path = DVC / TEMPLATE
    if not path.is_file() or made_by not in path.read_text(encoding="utf-8")[:500]:
        import vl_convert

        bundle = vl_convert.javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg] # its stub wants a snippet
        scripts = bundle.replace("</script", r"<\/script")
        with atomic_path(path) as temporary:
            temporary.write_text(PAGE.format(made_by=made_by, scripts=scripts), encoding="utf-8")
    if "html_template" not in Config(str(DVC)).get("plots", {}):
        with Config(str(DVC)).edit("local") as local:
            local.setdefault("plots", {})["html_template"] = TEMPLATE
