# syntax=docker/dockerfile:1
# secondpass for a CPU: the first stage compiles, the second serves.
#   docker build -t secondpass .
# For a GPU, with torch's CUDA build and 3 GB: --build-arg DEVICE=cuda
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# Any g++ of this Debian will do.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY quantized_lm quantized_lm
COPY service service
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE}
# What serves on a CPU needs no torch. What pip is told about it where it is wanted: with DEVICE=cuda, or named, for
# --backend reference.
ARG DEVICE=cpu
ARG TORCH=""

# Nobody may log in; the number is fixed so that orchestrators can demand and volumes can grant it.
RUN groupadd --gid 10001 secondpass \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin secondpass

# Torch apart from us: it stays the same from one of our versions to the next. Its tests, headers and compilers,
# 200 MB, are for those who build against it. TORCH holds several words, its version among them.
# hadolint ignore=DL3013,SC2086
RUN if [ "${DEVICE}" = cuda ] || [ -n "${TORCH}" ]; then \
      python -m pip install --no-cache-dir ${TORCH:-torch==2.13.0} \
      && torch="$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch" \
      && rm -rf "${torch}/test" "${torch}/include" \
      && find "${torch}/bin" -type f ! -name torch_shm_manager -delete; \
    fi \
 && if [ "${DEVICE}" = cuda ] && ! python -c 'import torch; raise SystemExit(torch.version.cuda is None)'; then \
      echo "DEVICE is cuda, torch is the build for a CPU: leave TORCH out, or name a CUDA build" >&2; exit 1; \
    fi

# Triton, which comes with torch's CUDA build, compiles a small C file for the driver when it first runs.
# hadolint ignore=DL3008
RUN if [ "${DEVICE}" = cuda ]; then \
      apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi

# What we depend on apart from us too: 200 MB that stay the same, built and pulled, from one change of ours to the next.
# Traces are off until OTEL_* asks.
RUN --mount=type=bind,source=pyproject.toml,target=/project/pyproject.toml \
    python -c 'import tomllib; project = tomllib.load(open("/project/pyproject.toml", "rb"))["project"]; print(*project["dependencies"], *project["optional-dependencies"]["otel"], sep="\n")' >/tmp/requirements.txt \
 && python -m pip install --no-cache-dir --requirement /tmp/requirements.txt \
 && rm /tmp/requirements.txt

# The wheel is a file; the ranges of the rest are in pyproject.toml, and met.
# hadolint ignore=DL3013
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python -m pip install --no-cache-dir "$(echo /wheels/*.whl)[otel]"

# Nothing is written: the root may be read-only, with a tmpfs at /tmp for those who ask torch for more.
# An image for a GPU says so where it finds none, instead of serving slowly.
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SECONDPASS_DEVICE=${DEVICE}
USER 10001:10001
WORKDIR /tmp
EXPOSE 8080
# The server drains for as long as SECONDPASS_DRAIN_S says; whoever stops the container must wait longer than that.
STOPSIGNAL SIGTERM
# Not by urllib, which would ask a proxy for it where the container is told of one.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('SECONDPASS_PORT', '8080')), timeout=2); c.request('GET', '/health/ready'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["secondpass", "serve", "--host", "0.0.0.0"]

# Last, since the revision is another one each time.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="secondpass" \
      org.opencontainers.image.description="Rescores speech recognition n-best lists and lattices over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
