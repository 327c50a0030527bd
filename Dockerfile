# Container images of Muse Serve, one target each:
#
#   docker build --target gateway          --tag muse-gateway:0.1.0 .
#   docker build --target worker           --tag muse-worker:0.1.0 .
#   docker build --target worker-cuda      --tag muse-worker-cuda:0.1.0 .
#   docker build --target encoder-svc      --tag muse-encoder:0.1.0 .
#   docker build --target encoder-svc-cuda --tag muse-encoder-cuda:0.1.0 .
#   docker build --target musectl          --tag musectl:0.1.0 .
#   docker build --target bundle           --tag muse-bundle-demo:0.1.0 .
#
# The names are those that helm/muse asks for. BuildKit is needed (cache mounts). Everything is compiled here; what is
# fetched comes from package registries, pinned: crates by Cargo.lock, ONNX Runtime by digest. All images run without root
# and need no writable file system.

ARG RUST_VERSION=1.95
ARG DEBIAN=bookworm

# === the binaries ===

FROM rust:${RUST_VERSION}-slim-${DEBIAN} AS build
WORKDIR /src
COPY . .
# The target folder is a cache and gone after this step, so the binaries are moved out of it.
RUN --mount=type=cache,id=muse-cargo,target=/usr/local/cargo/registry \
    --mount=type=cache,id=muse-target,target=/src/target \
    cargo build --release --locked --workspace --exclude muse-bench --bins \
    && mkdir /out \
    && cp target/release/muse-gateway target/release/muse-worker target/release/muse-encoder target/release/musectl /out/

# === ONNX Runtime, the shared library alone ===

FROM python:3.12-slim-${DEBIAN} AS onnxruntime
WORKDIR /src
COPY scripts/fetch_deps.py scripts/fetch_deps.py
RUN python scripts/fetch_deps.py onnxruntime

FROM python:3.12-slim-${DEBIAN} AS onnxruntime-cuda
WORKDIR /src
COPY scripts/requirements-cuda.txt requirements.txt
# The providers lie beside the library and are found there.
RUN pip install --no-cache-dir --no-deps --require-hashes --target wheel --requirement requirements.txt \
    && mkdir onnxruntime \
    && cp wheel/onnxruntime/capi/libonnxruntime*.so* wheel/onnxruntime/LICENSE wheel/onnxruntime/ThirdPartyNotices.txt onnxruntime/ \
    && ln -sf "$(basename onnxruntime/libonnxruntime.so.1.*)" onnxruntime/libonnxruntime.so

# === what the images stand on ===

# Certificates of public authorities, for a `rediss://` server, a bucket or an OTLP collector with TLS. The slim image has none.
FROM debian:${DEBIAN}-slim AS certificates
# The newest certificates are wanted, not pinned ones: authorities come and go.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*

FROM debian:${DEBIAN}-slim AS base
COPY --from=certificates /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY LICENSE NOTICE /usr/share/doc/muse/
USER 10001:10001

FROM base AS base-onnxruntime
COPY --from=onnxruntime /src/.deps/onnxruntime /opt/onnxruntime
# The second: memory that rare work took goes back to the system (docs/operations.md, Memory).
ENV MUSE__RUNTIME__ONNXRUNTIME=/opt/onnxruntime/libonnxruntime.so MALLOC_TRIM_THRESHOLD_=131072

# CUDA 13 and cuDNN 9, as requirements-cuda.txt wants; the driver comes from the node. TensorRT's own libraries are not in
# it: for `providers = ["tensorrt"]` take an image of NVIDIA's that has them as this base.
FROM nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04 AS base-cuda
COPY --from=certificates /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY LICENSE NOTICE /usr/share/doc/muse/
COPY --from=onnxruntime-cuda /src/onnxruntime /opt/onnxruntime
# The second: memory that rare work took goes back to the system (docs/operations.md, Memory).
ENV MUSE__RUNTIME__ONNXRUNTIME=/opt/onnxruntime/libonnxruntime.so MALLOC_TRIM_THRESHOLD_=131072
USER 10001:10001

# === the images ===

# The ports are the services' defaults (docs/operations.md). The chart sets 7700 and 7701 in all of them: each pod has an
# address of its own.

FROM base AS gateway
COPY --from=build /out/muse-gateway /usr/local/bin/
EXPOSE 7700 7701
ENTRYPOINT ["muse-gateway"]

FROM base-onnxruntime AS worker
COPY --from=build /out/muse-worker /usr/local/bin/
EXPOSE 7720
ENTRYPOINT ["muse-worker"]

FROM base-cuda AS worker-cuda
COPY --from=build /out/muse-worker /usr/local/bin/
EXPOSE 7720
ENTRYPOINT ["muse-worker"]

FROM base-onnxruntime AS encoder-svc
COPY --from=build /out/muse-encoder /usr/local/bin/
EXPOSE 7710 7711
ENTRYPOINT ["muse-encoder"]

FROM base-cuda AS encoder-svc-cuda
COPY --from=build /out/muse-encoder /usr/local/bin/
EXPOSE 7710 7711
ENTRYPOINT ["muse-encoder"]

# A client of a cluster elsewhere; `generate --local` and `bundle verify` work too, `up` does not (it starts the others).
FROM base-onnxruntime AS musectl
COPY --from=build /out/musectl /usr/local/bin/
ENTRYPOINT ["musectl"]

# The demo bundle, for the chart's init container: it copies /bundle out, so the image has a shell's tools and no service.
FROM base AS bundle
COPY bundles/demo /bundle
CMD ["ls", "-l", "/bundle"]
