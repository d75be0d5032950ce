# The image of every node of a cluster: Ray's GPU base, the tested versions, the project. No secrets in it.
#   docker build -t ray-pipeline .
ARG RAY_IMAGE=rayproject/ray:2.60.0-py311-cu128
FROM ${RAY_IMAGE}

WORKDIR /home/ray/app
COPY --chown=ray:users pyproject.toml constraints.txt README.md ./
# torch first: its build decides which CUDA libraries come along
RUN pip install --no-cache-dir "$(grep '^torch==' constraints.txt)"
COPY --chown=ray:users ray_pipeline ray_pipeline
COPY --chown=ray:users jobs jobs
RUN grep -v '^faiss-cpu==' constraints.txt > /tmp/constraints.txt \
    && pip install --no-cache-dir ".[gpu]" -c /tmp/constraints.txt

USER ray
HEALTHCHECK CMD ["python", "-c", "import ray, torch, transformers, peft, bitsandbytes, deepspeed, faiss, ray_pipeline"]
