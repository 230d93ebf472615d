"""The stages of the DVC graph, one module each: `python -m pipelines.stages NAME`."""
