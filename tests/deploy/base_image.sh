#!/usr/bin/env bash
# A stand-in for the base image python:3.11-slim-bookworm, where no registry serves images: base_image.sh NAME.
# Debian from the mirror of this machine's apt, and this machine's own CPython in /usr/local, as in the real one.
# For the test of the Dockerfile, never for an image that is published.
# Does nothing where the image is there; where it cannot be made, exits with 1 and one line that says why.
set -euo pipefail
name=${1:?need the name of the image to make}
buildah inspect --type image "$name" >/dev/null 2>&1 && exit 0

fail() {
  echo "no base image: $1" >&2
  exit 1
}
((EUID == 0)) || fail "debootstrap needs root"
for tool in buildah debootstrap python3.11; do command -v $tool >/dev/null || fail "$tool is not installed"; done
# shellcheck source=/dev/null
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
[[ $codename == bookworm ]] || fail "this is not Debian 12, whose C library our CPython would need"
# shellcheck disable=SC2016 # apt's own variable
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $codename" | head -n 1)
[[ -n $mirror ]] || fail "apt names no mirror of $codename"

work=$(mktemp -d)
container=""
trap '[[ -z $container ]] || buildah rm "$container" >/dev/null; rm -rf "$work"' EXIT
root=$work/root
# The libraries that CPython's own modules are linked to.
libraries=libssl3,libffi8,libsqlite3-0,libreadline8,libuuid1,libbz2-1.0,libncursesw6,libtirpc3,libnsl2
debootstrap --variant=minbase "--include=ca-certificates,netbase,tzdata,$libraries" "$codename" "$root" "$mirror" \
  >"$work/log" 2>&1 || fail "debootstrap: $(tail -n 1 "$work/log")"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*

prefix=$(python3.11 -c 'import sys; print(sys.base_prefix)')
tar -C "$prefix" --exclude='lib/python3.11/site-packages/*' --exclude='lib/python3.11/test' --exclude=__pycache__ \
  --exclude='*.a' -cf - bin/python3.11 bin/python3 bin/python lib/libpython3.11.so.1.0 lib/libpython3.so \
  lib/python3.11 include | tar -C "$root/usr/local" -xf -
chroot "$root" ldconfig
cp "${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}" "$root/etc/ssl/certs/ca-certificates.crt"
chroot "$root" /usr/local/bin/python3 -m ensurepip --upgrade --default-pip >"$work/log" 2>&1 \
  || fail "ensurepip: $(tail -n 1 "$work/log")"

container=$(buildah from scratch)
buildah add -q "$container" "$root" / >/dev/null
buildah config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin --cmd python3 "$container"
buildah commit -q "$container" "$name" >/dev/null
