FROM python:3.11-slim-bookworm AS build
COPY requirements-full.lock /
RUN python -m venv /venv \
    && /venv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check --require-hashes -r /requirements-full.lock

FROM node:22-bookworm-slim AS web
WORKDIR /web
COPY web/package.json web/package-lock.json ./
RUN npm ci --ignore-scripts --no-fund --no-audit
COPY web .
RUN npm run --silent build

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 chattable \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /data --shell /usr/sbin/nologin chattable \
    && install -d -o chattable -g chattable -m 0700 /data /data/objects
COPY --from=build /venv /venv
WORKDIR /app
COPY pyproject.toml ./
COPY deploy/entrypoint /usr/local/bin/chattable
COPY migrations migrations
COPY app app
COPY agents agents
COPY --from=web /web/dist web/dist
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOST=0.0.0.0 PORT=8080 DATA_DIR=/data
USER 10001:10001
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=5); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["chattable"]
CMD ["serve"]
