#!/usr/bin/env bash
# An environment with Triton for the kernels of the GPU, for machines that have none: make.sh FOLDER [ENVIRONMENT].
# Its Python is FOLDER/bin/python; it sees the packages of ENVIRONMENT, by default the folder above, so torch is not
# installed twice. Triton's interpreter runs the kernels on a CPU, and its compiler makes code for GPUs that are not there.
# Does nothing where the folder is ready; where it cannot be made, exits with 1 and one line that says why.
set -euo pipefail
folder=${1:?need the folder to make}
environment=$(realpath -m "${2:-$(dirname "$folder")}")
# shellcheck source=tests/environment.sh
source "$(dirname "$0")/../environment.sh"
begin GPU "$folder" "$(cksum <"$0") $environment" 2000
[[ $(uname -s) == Linux ]] || fail "Triton has wheels for Linux alone"

# That of ENVIRONMENT, which may be in the making at the same time.
python=""
for candidate in "$environment/bin/python" python3.11 python3; do
  if "$candidate" -c 'import ensurepip' 2>/dev/null; then
    python=$candidate
    break
  fi
done
[[ -n $python ]] || fail "there is no Python"
"$python" -m venv "$folder" >/dev/null 2>&1 || fail "its venv cannot be made"
# 3.7.1 is what torch 2.13 is made with. Triton has no other dependency at run time.
timeout 280 "$folder/bin/python" -m pip install --quiet --no-compile --no-cache-dir --no-deps --retries 2 triton==3.7.1 >/dev/null 2>&1 ||
  fail "pip cannot install triton==3.7.1"
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# addsitedir also reads the .pth files there, by which an editable install is found.
echo "import site; site.addsitedir('$environment/lib/$(basename "$(dirname "$site")")/site-packages')" >"$site/environment.pth"
why=$("$folder/bin/python" -W ignore -c 'import triton' 2>&1) || fail "$(tail -n 1 <<<"$why")"
finish
