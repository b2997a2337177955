# GhostServe's image: the server, the runtime library that computes, what those two load, and nothing else. No shell, no
# package manager; a numeric user; a root file system that can be read-only.
#
#   docker build -t ghostserve .
#   docker build -t ghostserve:openvino --build-arg EP=openvino .        (x86-64 only)
#
# arm64 and x86-64 alike: what is downloaded follows the platform that is built for.

# Pinned; a newer base is a change like any other. CI makes both from Debian's packages where no registry answers.
ARG RUST_IMAGE=docker.io/library/rust:1.95.0-slim-bookworm
ARG DEBIAN_IMAGE=docker.io/library/debian:12.12-slim

# ---- The binary ----
FROM ${RUST_IMAGE} AS build
WORKDIR /build

# Dependencies and the crates of the workspace, which change less often than the server: this layer is made again only when
# one of them changes. The server's sources are stand-ins that compile.
COPY Cargo.toml Cargo.lock ./
COPY proto proto
COPY crates crates
# The label file of ImageNet is part of the hub client, the default model of the server.
COPY models models
RUN mkdir -p src benches \
    && echo '//! A stand-in.' >src/lib.rs \
    && for name in src/main benches/network benches/stages benches/end_to_end; do \
        printf '//! A stand-in.\nfn main() {}\n' >"${name}.rs"; \
    done \
    && cargo build --release --locked --quiet --bin ghostserve \
    && rm -r src benches

COPY src src
COPY benches benches
# Shown on /metrics.
ARG REVISION=unknown
# Cargo goes by times, and the stand-ins are younger than the sources.
RUN touch src/lib.rs src/main.rs \
    && GHOSTSERVE_BUILD_REVISION="${REVISION}" cargo build --release --locked --quiet --bin ghostserve

# ---- The image's files ----
FROM ${DEBIAN_IMAGE} AS files
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# Security updates of the libraries that end up in the image come in here, so versions are not pinned.
# hadolint ignore=DL3008
RUN export DEBIAN_FRONTEND=noninteractive \
    && apt-get update \
    && apt-get upgrade -y \
    && apt-get install -y --no-install-recommends ca-certificates libstdc++6 python3 python3-pip \
    && rm -rf /var/lib/apt/lists/*

# What computes: cpu (ONNX Runtime itself) or openvino.
ARG EP=cpu
COPY deploy/onnxruntime /fetch
RUN case "${EP}" in \
        cpu) distribution=onnxruntime ;; \
        openvino) distribution=onnxruntime-openvino ;; \
        *) echo "EP is cpu or openvino, found '${EP}'" >&2; exit 1 ;; \
    esac \
    && python3 /fetch/fetch.py /image/usr/lib/ghostserve --distribution "${distribution}"

COPY --from=build /build/target/release/ghostserve /image/usr/bin/ghostserve
COPY deploy/image/assemble.sh /
RUN /assemble.sh /image

# ---- The image ----
FROM scratch
COPY --from=files /image /
ARG EP=cpu
ENV PATH=/usr/bin \
    GHOSTSERVE_ONNXRUNTIME=/usr/lib/ghostserve \
    GHOSTSERVE_PROVIDER=${EP} \
    GHOSTSERVE_LOG_FORMAT=json \
    ORT_DISABLE_TELEMETRY=1
# A number, so that Kubernetes can tell that it is not root.
USER 65532:65532
EXPOSE 8080
# The start: models are loaded, and the plan is measured.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD ["/usr/bin/ghostserve", "health"]
# It drains when told to stop: 5 s of accepting, then at most 20 s for what is in flight.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/ghostserve"]
CMD ["serve"]

ARG REVISION=unknown
ARG VERSION=0.2.0
LABEL org.opencontainers.image.title="GhostServe" \
      org.opencontainers.image.description="Image-inference server: GhostNetV2 on ONNX Runtime, over HTTP and gRPC, on plain CPUs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.documentation="README.md"
