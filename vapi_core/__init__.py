"""VA-π: models, alignment methods, sampling and scoring. Needs torch; knows nothing of DVC, MLflow or Prefect."""
