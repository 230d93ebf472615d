"""Side-by-side speed: ours against the authors' schedule, same weights, same machine, same run (docs/speed.md).

Imports `vapi_core`, torch and PyYAML, so that it runs on a bare GPU machine; `score` and `pipeline` say what more they
need.
"""
