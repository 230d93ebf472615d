"""The pipeline around `vapi_core`: DVC's stages, typed params, tracking."""

import os

# Before anything imports torch: OpenMP threads that spin at barriers stall each other when anything else wants the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
