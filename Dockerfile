# The image of every node of a cluster: Ray's GPU base, the tested versions, the project. No secrets in it.
#   docker build -t ray-pipeline .
#   docker build -t ray-pipeline-vllm --target vllm .        for score.engine vllm
#   docker build -t ray-pipeline --build-arg RAY_IMAGE=rayproject/ray:2.60.0-py311-cpu --build-arg FAISS=cpu .
# The torch that pip takes is built for CUDA 13, whatever the base has: GPU nodes need NVIDIA's driver 580 or newer.
# For an older driver: --build-arg TORCH_INDEX=<address of an index of PyTorch's builds for CUDA 12.9>
ARG RAY_IMAGE=rayproject/ray:2.60.0-py311-cu128

# What is to be installed: the list changes more rarely than the code, so that its layer is kept.
FROM ${RAY_IMAGE} AS sources
ARG FAISS=gpu
# Made by the user `ray`: WORKDIR alone would leave it to root in builds without BuildKit.
RUN mkdir -p sources
WORKDIR /home/ray/sources
COPY --chown=ray:users pyproject.toml constraints.txt README.md ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['${FAISS}'], 'boto3', sep='\n')" > requirements.txt
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['vllm'])" > vllm.txt
COPY --chown=ray:users ray_pipeline ray_pipeline
RUN pip wheel --no-cache-dir --no-deps --wheel-dir wheels .

FROM ${RAY_IMAGE} AS app
# DeepSpeed compiles an operation at the first training on CPUs; Ray's images without CUDA have no compiler.
USER 0
# hadolint ignore=DL3008
RUN command -v c++ > /dev/null \
    || { apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*; }
USER 1000
# An index of PyTorch's builds for another CUDA, or for none; empty: the one that pip uses.
ARG TORCH_INDEX=""
RUN mkdir -p app
WORKDIR /home/ray/app
COPY --from=sources --chown=ray:users /home/ray/sources/requirements.txt /home/ray/sources/constraints.txt ./
# torch first: its build decides which CUDA libraries come along. Its version is the pinned one, if not in one word:
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "$(grep '^torch==' constraints.txt)" \
    && pip install --no-cache-dir -r requirements.txt -c constraints.txt
COPY --from=sources --chown=ray:users /home/ray/sources/wheels wheels
RUN pip install --no-cache-dir --no-deps wheels/*.whl && rm -r wheels
RUN python -m ray_pipeline.health
COPY --chown=ray:users jobs jobs

# Where vLLM wants other versions than ours, as of transformers and numpy, it gets them; all else stays as it is pinned.
FROM app AS vllm
ARG TORCH_INDEX=""
RUN test -z "${TORCH_INDEX}" || { echo "vLLM needs torch for CUDA 13: leave out TORCH_INDEX" >&2; exit 1; }
COPY --from=sources --chown=ray:users /home/ray/sources/vllm.txt ./
RUN grep -vE '^(transformers|numpy)==' constraints.txt > vllm-constraints.txt \
    && pip install --no-cache-dir -r vllm.txt -c vllm-constraints.txt \
    && python -m ray_pipeline.health

# What is built without --target.
FROM app
