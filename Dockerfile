# Rensei as one image: the web server, the worker, Celery's worker, the preparation and the `rensei` command.
#
#   docker build --tag rensei .          or: podman build --format docker --tag rensei .
#
# The base is any Debian with Python 3.11 or newer as its `python3`; another registry's copy of it is as good.
ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim

FROM ${BASE_IMAGE} AS runtime
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* \
 && useradd --system --uid 10001 --user-group --home-dir /var/lib/rensei --shell /usr/sbin/nologin rensei \
 && install --directory --owner rensei --group rensei --mode 0700 /var/lib/rensei

FROM runtime AS build
# Where a proxy signs with a certificate of its own: the files that pip and uv trust, given by --build-arg.
ARG PIP_CERT
ARG SSL_CERT_FILE
# requirements-key-services.txt adds the libraries of AWS, Azure, Google and PKCS#11 for the vault's outer key.
ARG LOCK=requirements.txt
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-venv
WORKDIR /source
RUN python3 -m venv /tools && python3 -m venv --without-pip /opt/rensei
COPY requirements-build.txt ${LOCK} ./
RUN /tools/bin/pip install --quiet --no-compile --require-hashes --no-deps -r requirements-build.txt \
 && /tools/bin/uv pip install --quiet --no-cache --python /opt/rensei/bin/python --compile-bytecode \
    --require-hashes --no-deps -r ${LOCK}
COPY . .
RUN /tools/bin/uv build --quiet --wheel --no-build-isolation --python /tools/bin/python --out-dir /wheel \
 && /tools/bin/uv pip install --quiet --no-cache --python /opt/rensei/bin/python --compile-bytecode \
    --no-deps --no-index /wheel/*.whl \
 && find /opt/rensei \( -name '*.po' -o -name .lock \) -delete
# Pages name static files by their content, and every web process has the same ones.
RUN RENSEI_STATIC_DIR=/opt/rensei/static RENSEI_DATA_DIR=/build-data SECRET_KEY=only-for-this-step \
    /opt/rensei/bin/rensei-manage prepare --static-only

FROM runtime
COPY --from=build /opt/rensei /opt/rensei
# What is installed is compiled already, and the root file system may be read-only.
ENV PATH=/opt/rensei/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RENSEI_DATA_DIR=/var/lib/rensei \
    RENSEI_STATIC_DIR=/opt/rensei/static
USER 10001:10001
# Not the data: the web server loads modules from the folder that it is started in.
WORKDIR /opt/rensei
VOLUME /var/lib/rensei
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["granian", "--interface", "asgi", "--host", "0.0.0.0", "--port", "8000", "--workers", "2", "--workers-kill-timeout", "35", "--http", "1", "--http1-header-read-timeout", "30000", "--backpressure", "10000", "--no-ws", "rensei.asgi:application"]
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="Rensei" \
      org.opencontainers.image.description="Decides, for every call to a language model, whose credential signs it, who pays, and where it runs." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
