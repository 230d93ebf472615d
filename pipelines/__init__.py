"""The pipeline around `vapi_core`: DVC's stages, typed params, tracking."""

import os
import sys

# Before anything imports torch: OpenMP threads that spin at barriers stall each other when others want the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if sys.argv[0] == "-m":  # so Python calls a command while it looks for its module
    from pipelines.messages import heed_signals

    heed_signals()
