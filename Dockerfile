# walt for TPU pods on GKE (launch/gke), and for any machine: docker run IMAGE sample --prompt="…" --output=/tmp/out.mp4
#
#   docker build --platform=linux/amd64 -t REGISTRY/walt . && docker push REGISTRY/walt
FROM python:3.12-slim-bookworm AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/walt
ENV PATH=/opt/walt/bin:$PATH

# The layer of the packages changes with this list alone, not with the code.
COPY launch/requirements.txt /tmp/requirements.txt
RUN pip install --no-deps --only-binary=:all: -r /tmp/requirements.txt

WORKDIR /src
COPY setup.py pyproject.toml README.md LICENSE ./
COPY configs configs
COPY walt walt
RUN pip install --no-deps . && pip check

FROM python:3.12-slim-bookworm

RUN useradd --create-home --uid 1000 walt
COPY --from=build /opt/walt /opt/walt
ENV PATH=/opt/walt/bin:$PATH PYTHONUNBUFFERED=1

USER 1000
WORKDIR /home/walt
ENTRYPOINT ["walt"]
CMD ["--help"]
