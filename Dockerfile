# syntax=docker/dockerfile:1
ARG BASE=docker.io/library/python:3.13-slim-trixie

# hadolint ignore=DL3006
FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements/base.txt /build/requirements/
RUN python -m venv --without-pip /opt/app \
    && pip --python /opt/app/bin/python install --no-compile --require-hashes -r /build/requirements/base.txt
COPY pyproject.toml README.md LICENSE /build/
COPY src /build/src
# Bytecode that depends on the content of the files, not on their times: two builds are equal. `-f` also replaces what pip has compiled
# because it imports an installed package.
RUN pip --python /opt/app/bin/python install --no-compile --no-deps /build \
    && python -m compileall -q -f --invalidation-mode checked-hash /opt/app/lib \
    && rm -rf /build

# hadolint ignore=DL3006
FROM ${BASE}
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin app \
    && rm -rf /usr/local/lib/python3*/site-packages/pip* /usr/local/bin/pip* /var/log/*
COPY --from=build /opt/app /opt/app
ENV PATH=/opt/app/bin:$PATH PYTHONUNBUFFERED=1 APP_SERVER__HOST=0.0.0.0
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s CMD ["app", "healthcheck"]
ENTRYPOINT ["app"]
CMD ["serve"]
