#!/bin/sh
# Installs what only Debian brings to the tests: the C++ client's gRPC, a compiler and an emulator for ARM, a browser for
# the pages, systemd's checks of the unit, other decoders of DICOM and JPEG 2000, the DICOM node's peers, what makes videos, minisign, and what sets up a network namespace. Without it those tests skip, and each names its package.
set -eu
test -w /var/lib/dpkg || { echo "no Debian or not root: the tests that need its packages skip"; exit 0; }
needed="cmake g++ pkg-config libgrpc++-dev libprotobuf-dev protobuf-compiler-grpc
        g++-aarch64-linux-gnu qemu-user chromium systemd
        dcmtk dicom3tools orthanc fonts-wqy-microhei poppler-utils libgdcm-tools libopenjp2-tools ffmpeg minisign iproute2"
missing=$(for package in $needed; do
    dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || echo "$package"
done)
test -n "$missing" || exit 0
echo "installing" $missing
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends -y $missing >/dev/null
