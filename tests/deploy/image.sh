#!/usr/bin/env bash
# Build the image, run it as an orchestrator would, and ask it: non-root, read-only root, SIGTERM. Three to six minutes.
#   image.sh            on a base image made of this machine's own files (base_image.sh)
#   BASE=NAME image.sh  on one that is here or that podman can pull
# Prints one JSON object last. Where there is nothing to build or run with, prints why and exits 0.
set -euo pipefail
cd "$(dirname "$0")/../.."
image=localhost/secondpass:test
max_bytes=500000000

skip() {
  echo "skipped: the image was not built: $1"
  exit 0
}
fail() {
  echo "failed: $1" >&2
  exit 1
}
for tool in buildah podman runc python3; do command -v $tool >/dev/null || skip "$tool is not installed"; done
((EUID == 0)) || skip "building without a daemon needs root here"
base=${BASE:-localhost/secondpass-base:bookworm}
pull=()
if [[ -z ${BASE:-} ]]; then
  pull=(--pull-never)
  why=$(tests/deploy/base_image.sh "$base" 2>&1) || skip "$(tail -n 1 <<<"$why")"
fi

work=$(mktemp -d)
container=""
clean() {
  [[ -z $container ]] || podman rm --force "$container" >/dev/null 2>&1 || true
  podman rmi --force "$image" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap clean EXIT
# Without systemd: runc instead of crun, limits no higher than our own, and no journal.
cat >"$work/containers.conf" <<'CONF'
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
CONF
export CONTAINERS_CONF=$work/containers.conf

# A machine behind a mirror or with its own wheels says so in pip's settings: the build sees them, and the folders
# they name, and keeps none of it.
python3 -m pip config list | python3 -c '
import re, sys
names = "cert|default-timeout|find-links|index-url|proxy|trusted-host"
found = dict(re.findall(rf"^(?::env:|global)\.({names})=\x27(.*)\x27$", sys.stdin.read(), re.MULTILINE))
sys.stdout.write("[global]\n" + "".join(f"{name} = {value}\n" for name, value in found.items()))
' >"$work/pip.conf"
mounts=(--volume "$work/pip.conf:/etc/pip.conf:ro")
while read -r path; do # read drops the space before it
  [[ ! -e $path ]] || mounts+=(--volume "$path:$path:ro")
done < <(grep -oE ' /[^ ]+' "$work/pip.conf")

# A clean clone: what git knows, changed files as they are.
mkdir "$work/context"
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' path; do
  [[ ! -e $path ]] || printf '%s\0' "$path"
done | tar --null --files-from - -cf - | tar -C "$work/context" -xf -
started_s=$SECONDS
buildah bud --isolation chroot --format docker --quiet "${pull[@]}" "${mounts[@]}" \
  --build-arg "BASE=$base" --tag "$image" "$work/context" \
  >"$work/log" 2>&1 || { tail -n 30 "$work/log" >&2; fail "the build"; }
build_s=$((SECONDS - started_s))
size_bytes=$(podman image inspect --format '{{.Size}}' "$image")
((size_bytes < max_bytes)) || fail "the image has $size_bytes bytes; need fewer than $max_bytes"

hardened=(--read-only --read-only-tmpfs=false --tmpfs /tmp --cap-drop all --security-opt no-new-privileges)
sh_inside() { podman run --rm --no-healthcheck "${hardened[@]}" --entrypoint sh "$image" -c "$1"; }
[[ $(sh_inside 'id -u') == 10001 ]] || fail "the image does not run as user 10001"
compilers=$(sh_inside 'command -v gcc g++ cc c++ clang ld cmake || true')
[[ -z $compilers ]] || fail "the image holds a compiler: $compilers"
sh_inside 'touch /opt/file 2>/dev/null' && fail "the root can be written"

# The health check is called by hand: its timer would need systemd, whose absence podman reports as an error.
started_s=$SECONDS
container=$(podman run --detach "${hardened[@]}" --health-interval disable --publish 127.0.0.1::8080 "$image" \
  2>"$work/log") || { cat "$work/log" >&2; fail "it does not start"; }
until podman healthcheck run "$container" >/dev/null 2>&1; do
  ((SECONDS - started_s < 120)) || { podman logs "$container" >&2; fail "not ready after 120 s"; }
  [[ $(podman inspect --format '{{.State.Running}}' "$container") == true ]] || { podman logs "$container" >&2; fail "it ended"; }
  sleep 0.5
done
ready_s=$((SECONDS - started_s))
address=$(podman port "$container" 8080/tcp)
best=$(python3 -c '
import json, sys, urllib.request
body = open("deploy/sample_request.json", "rb").read()
request = urllib.request.Request(sys.argv[1], body, {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request, timeout=30))["results"][0]["hypotheses"][0]["text"])
' "http://$address/v1/rescore")
[[ $best == "please send the report to the office before the end of the week" ]] || fail "the best text is '$best'"
memory_bytes=$(awk '/VmRSS/ { print $2 * 1024 }' "/proc/$(podman inspect --format '{{.State.Pid}}' "$container")/status")

started_s=$SECONDS
podman stop --time 45 "$container" >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "it does not stop"; }
stop_s=$((SECONDS - started_s))
code=$(podman inspect --format '{{.State.ExitCode}}' "$container")
[[ $code == 0 ]] || fail "it ended with $code after SIGTERM"
printf '{"image_bytes": %d, "build_s": %d, "ready_s": %d, "resident_bytes": %d, "stop_s": %d}\n' \
  "$size_bytes" "$build_s" "$ready_s" "$memory_bytes" "$stop_s"
