# The images of the four deployables, of the console and, for docker-compose.yml, of the gateway and of shopctl.
#
#   docker build --target order-api --tag shop/order-api:1.2.3 --build-arg VERSION=1.2.3 .
#
# An image runs its process, or the command in its arguments (`migrate`). The root file system may be read-only; no volume is
# needed.

# Base images, which may come from a mirror. The tests cover these versions.
ARG PYTHON=python:3.13-slim-trixie
ARG DEBIAN=debian:trixie-slim

# --- dependencies: rebuilt when a lock file changes ---

FROM ${PYTHON} AS dependencies
ENV PIP_CACHE_DIR=/pip-cache
RUN python -m venv --without-pip /venv
COPY requirements/*-api.txt requirements/event-relay.txt requirements/reservation-reaper.txt /requirements/
# One layer with all dependencies, shared by the images: the lock files differ little or not at all.
RUN --mount=type=cache,target=/pip-cache \
    for lock in /requirements/*.txt; do set -- "$@" --requirement "$lock"; done \
    && pip --python /venv install --disable-pip-version-check --only-binary=:all: --require-hashes "$@"

# --- our packages: rebuilt when the code changes ---

FROM ${PYTHON} AS packages
ENV PIP_CACHE_DIR=/pip-cache
COPY requirements/bootstrap.txt /requirements/
RUN --mount=type=cache,target=/pip-cache \
    python -m venv /build \
    && /build/bin/pip install --disable-pip-version-check --only-binary=:all: --require-hashes --requirement /requirements/bootstrap.txt
# The version of the packages, or 0.0.0 if it is a word such as `dev`. The build has no git history.
ARG VERSION=dev
COPY libs/client /src/libs/client
COPY libs/common /src/libs/common
COPY libs/shopctl /src/libs/shopctl
COPY proto /src/proto
COPY services /src/services
# One folder for shared packages, one each for the client and for shopctl, and one per service. Bytecode is never checked against its source, since
# neither changes in an image.
RUN cd /src \
    && install() { /build/bin/uv pip install --quiet --offline --no-deps --no-build-isolation --python /build --target "$@"; } \
    && SETUPTOOLS_SCM_PRETEND_VERSION=$(echo "$VERSION" | grep '^[0-9]' || echo 0.0.0) \
    && export PATH=/build/bin:$PATH SETUPTOOLS_SCM_PRETEND_VERSION \
    && install /packages/shared ./libs/common ./proto \
    && install /packages/client ./libs/client \
    && install /packages/shopctl ./libs/shopctl \
    && for service in services/*; do install "/packages/${service##*/}" "./$service"; done \
    && rm /packages/*/.lock \
    && python -m compileall -q --invalidation-mode unchecked-hash /packages

# --- runtime images ---

FROM ${PYTHON} AS nobody
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN groupadd --gid 10001 shop && useradd --uid 10001 --gid shop --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin shop
USER 10001:10001
STOPSIGNAL SIGTERM

FROM nobody AS runtime
# Listen on all addresses: other containers reach this one only by its own address, not by loopback.
ENV METRICS_PORT=9464 LISTEN_HOST=[::]
HEALTHCHECK --interval=10s --timeout=10s --retries=5 --start-period=120s \
    CMD ["sh", "-c", "exec python -m shop_common.process.probe localhost:$HEALTH_PORT"]
COPY --from=dependencies /venv /venv

FROM runtime AS inventory-api
ARG VERSION=dev REVISION=unknown
LABEL org.opencontainers.image.title=inventory-api org.opencontainers.image.version=${VERSION} org.opencontainers.image.revision=${REVISION}
ENV GRPC_PORT=50053 HEALTH_PORT=50063
EXPOSE 50053 50063 9464
ENTRYPOINT ["python", "-m", "inventory_api"]
COPY --from=packages /packages/shared /packages/inventory-api /venv/lib/python3.13/site-packages/

FROM runtime AS order-api
ARG VERSION=dev REVISION=unknown
LABEL org.opencontainers.image.title=order-api org.opencontainers.image.version=${VERSION} org.opencontainers.image.revision=${REVISION}
ENV GRPC_PORT=50054 HEALTH_PORT=50064
EXPOSE 50054 50064 9464
ENTRYPOINT ["python", "-m", "order_api"]
COPY --from=packages /packages/shared /packages/order-api /venv/lib/python3.13/site-packages/

FROM runtime AS reservation-reaper
ARG VERSION=dev REVISION=unknown
LABEL org.opencontainers.image.title=reservation-reaper org.opencontainers.image.version=${VERSION} org.opencontainers.image.revision=${REVISION}
ENV HEALTH_PORT=50055
EXPOSE 50055 9464
ENTRYPOINT ["python", "-m", "reservation_reaper"]
COPY --from=packages /packages/shared /packages/reservation-reaper /venv/lib/python3.13/site-packages/

FROM runtime AS event-relay
ARG VERSION=dev REVISION=unknown
LABEL org.opencontainers.image.title=event-relay org.opencontainers.image.version=${VERSION} org.opencontainers.image.revision=${REVISION}
ENV HEALTH_PORT=50056
EXPOSE 50056 9464
ENTRYPOINT ["python", "-m", "event_relay"]
COPY --from=packages /packages/shared /packages/event-relay /venv/lib/python3.13/site-packages/

# --- console: it has dependencies that no other process has ---

FROM dependencies AS console-dependencies
COPY requirements/console.txt /requirements/
RUN --mount=type=cache,target=/pip-cache \
    pip --python /venv install --disable-pip-version-check --only-binary=:all: --require-hashes --requirement /requirements/console.txt

FROM runtime AS console
ARG VERSION=dev REVISION=unknown
LABEL org.opencontainers.image.title=console org.opencontainers.image.version=${VERSION} org.opencontainers.image.revision=${REVISION}
ENV HTTP_PORT=50080 HEALTH_PORT=50057
EXPOSE 50080 50057 9464
COPY --from=console-dependencies /venv /venv
ENTRYPOINT ["python", "-m", "console"]
COPY --from=packages /packages/shared /packages/client /packages/shopctl /packages/console /venv/lib/python3.13/site-packages/

# --- shopctl: jobs and the load generator, for docker-compose.yml ---

FROM dependencies AS shopctl-dependencies
COPY requirements/shopctl.txt /requirements/
RUN --mount=type=cache,target=/pip-cache \
    pip --python /venv install --disable-pip-version-check --only-binary=:all: --require-hashes --requirement /requirements/shopctl.txt

FROM nobody AS shopctl
ARG VERSION=dev REVISION=unknown
LABEL org.opencontainers.image.title=shopctl org.opencontainers.image.version=${VERSION} org.opencontainers.image.revision=${REVISION}
COPY --from=shopctl-dependencies /venv /venv
ENTRYPOINT ["python", "-m", "shopctl"]
COPY --from=packages /packages/shared /packages/client /packages/shopctl /venv/lib/python3.13/site-packages/

# --- gateway: one address for the replicas of the APIs, for docker-compose.yml ---

FROM ${DEBIAN} AS gateway
RUN apt-get update \
    && apt-get install --yes --no-install-recommends haproxy \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives
COPY deploy/compose/gateway/haproxy.cfg /etc/haproxy/haproxy.cfg
USER 10001:10001
STOPSIGNAL SIGUSR1
EXPOSE 50053 50054
# `docker compose up --wait` fails if a container is unhealthy, so allow the APIs two minutes to come back.
HEALTHCHECK --interval=5s --timeout=10s --retries=24 --start-period=120s CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8405 && printf 'GET /ready HTTP/1.0\\r\\n\\r\\n' >&3 && grep -q ' 200 ' <&3"]
ENTRYPOINT ["haproxy", "-W", "-db", "-f", "/etc/haproxy/haproxy.cfg"]
