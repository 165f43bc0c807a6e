# One image for all roles: the binary, qemu-img and qemu-io.
#   docker build -t driftline .
#   docker build --build-arg BUILD_BASE=… --build-arg RUN_BASE=… …     where images come from a mirror of your own
ARG BUILD_BASE=docker.io/library/rust:1.95-slim-bookworm
ARG RUN_BASE=docker.io/library/debian:bookworm-slim

FROM ${BUILD_BASE} AS build
# ring is partly C.
RUN command -v cc >/dev/null || (apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev)
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
COPY src src
COPY crds crds
# Cargo wants every target that Cargo.toml names to be there, though none of them is built here.
COPY tests tests
COPY benches benches
RUN cargo build --locked --release --bin driftline

FROM ${RUN_BASE}
RUN apt-get update && apt-get install -y --no-install-recommends qemu-utils && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 64090 --home-dir /nonexistent --shell /usr/sbin/nologin driftline
COPY --from=build /src/target/release/driftline /usr/local/bin/driftline
# The controller needs no right at all. The agent is given root by the chart's DaemonSet: it opens guests' sockets.
USER 64090:64090
ENTRYPOINT ["/usr/local/bin/driftline"]
