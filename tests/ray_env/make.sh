#!/usr/bin/env bash
# An environment with Ray, to run the service on: make.sh FOLDER. Its Python is FOLDER/bin/python.
# Does nothing where the folder is ready; where it cannot be made, exits with 1 and one line that says why.
set -euo pipefail
folder=${1:?need the folder to make}
root=$(dirname "$(realpath "$0")")/../..
# shellcheck source=tests/environment.sh
source "$(dirname "$0")/../environment.sh"
begin Ray "$folder" "$(cat "$0" "$root/pyproject.toml" | cksum)" 4000
"${PYTHON:-python3.11}" -m venv "$folder" >/dev/null 2>&1 || fail "its venv cannot be made"
install() { timeout 400 "$folder/bin/python" -m pip install --quiet --no-compile --no-cache-dir --retries 2 "$@" >/dev/null 2>&1; }
install "${TORCH:-torch==2.13.0}" || fail "pip cannot install torch"
install --editable "${root}[ray]" || fail "pip cannot install the project and ray[data,serve]"
why=$("$folder/bin/python" -W ignore -c 'import ray.data, ray.serve, service.app' 2>&1) || fail "$(tail -n 1 <<<"$why")"
finish
