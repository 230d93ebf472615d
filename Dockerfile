# The locked environment, for CPU and GPU alike (torch's wheels have CUDA; a GPU needs NVIDIA's container runtime):
#   docker build -t vapi-lab .
#   docker run --rm vapi-lab make test
#   docker run --rm --gpus all -e PREFECT_API_URL -e MLFLOW_TRACKING_URI -v "$PWD:/clone" -w /clone vapi-lab \
#     vapi worker
FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends git make procps && rm -rf /var/lib/apt/lists/*
WORKDIR /lab
COPY . .
RUN make .venv/installed
ENV PATH=/lab/.venv/bin:$PATH
CMD ["make", "help"]
