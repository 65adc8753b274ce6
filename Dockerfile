# The environment of a card (environment.yml) and r1track, for Docker and, by conversion, for Apptainer: docs/cluster.md.
# The driver of the card comes from the host. No weights and no data are in the image.
# Another BASE with Python 3.12, for who has no registry: --build-arg BASE=...
ARG BASE=python:3.12-slim
FROM ${BASE}
# A C compiler, with which Triton builds kernels when training starts; git, for the commit in every provenance.json.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc git libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/r1track
COPY . .
RUN sed -n '/- pip:/,$s/^ *- //p' environment.yml | grep -v '^pip:' > /tmp/requirements.txt \
    && pip install --no-cache-dir -r /tmp/requirements.txt
# Runs and data are in the folder that is mounted here.
WORKDIR /work
ENTRYPOINT ["snakemake", "--snakefile", "/opt/r1track/Snakefile"]
