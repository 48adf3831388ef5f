# Debian's package of PgBouncer. Its configuration is mounted.
FROM debian:trixie-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends pgbouncer \
    && rm -rf /var/lib/apt/lists/*
USER nobody
ENTRYPOINT ["pgbouncer"]
