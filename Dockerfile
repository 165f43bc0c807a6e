# One image for all roles: the binary, qemu-img, qemu-io and qemu-storage-daemon.
#   docker build -t driftline .
#   docker build --build-arg BUILD_BASE=… --build-arg RUN_BASE=… …     where images come from a mirror of your own
#   docker build --build-context build=FOLDER …                        takes FOLDER/driftline and compiles nothing
# tests/image/build does the last one with buildah, on a base that has the packages already: it needs no network.
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
RUN cargo build --locked --release --bin driftline && cp target/release/driftline /driftline

FROM ${RUN_BASE}
# Of qemu-system-common the one program alone: its libraries are those of qemu-utils, while the whole package brings
# 64 MB of sound and graphics (measured on bookworm). qemu-block-extra (iSCSI, NFS, SSH, Ceph, Gluster, curl) would be
# 57 MB more, and Driftline opens files only; NBD is built in.
# The user is written down without useradd, which would note the day in /etc/shadow: the same input, the same layer.
RUN set -e; \
    if ! { command -v qemu-img && command -v qemu-io && command -v qemu-storage-daemon; } >/dev/null; then \
        apt-get update; \
        apt-get install -y --no-install-recommends qemu-utils; \
        cd /tmp; \
        apt-get download "qemu-system-common=$(dpkg-query -f '${Version}' -W qemu-utils)"; \
        dpkg-deb --fsys-tarfile qemu-system-common_*.deb | tar -x -C / ./usr/bin/qemu-storage-daemon; \
        rm -rf qemu-system-common_*.deb /var/lib/apt/lists/*; \
    fi; \
    if ! grep -q '^driftline:' /etc/passwd; then \
        echo 'driftline:x:64090:64090::/nonexistent:/usr/sbin/nologin' >>/etc/passwd; \
        echo 'driftline:x:64090:' >>/etc/group; \
    fi
COPY --from=build /driftline /usr/local/bin/driftline
LABEL org.opencontainers.image.title="driftline" \
      org.opencontainers.image.description="Exact, incremental backups of running QEMU/KVM machines" \
      org.opencontainers.image.url="https://driftline.dev" \
      org.opencontainers.image.licenses="Apache-2.0"
# The controller needs no right at all. The agent is given root by the chart's DaemonSet: it opens guests' sockets.
USER 64090:64090
ENTRYPOINT ["/usr/local/bin/driftline"]
