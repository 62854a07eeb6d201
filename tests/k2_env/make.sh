#!/usr/bin/env bash
# An environment with the real k2, to compare with: make.sh FOLDER. Its Python is FOLDER/bin/python.
# k2 of PyPI is for Python 3.10 and torch 1.13.1, whose wheel is linked to CUDA libraries of 1.4 GB that a CPU
# never calls: stubs with the same names stand in for them. For these tests, not for users.
# Does nothing where the folder is ready; where it cannot be made, exits with 1 and one line that says why.
set -euo pipefail
folder=${1:?need the folder to make}
# shellcheck source=tests/environment.sh
source "$(dirname "$0")/../environment.sh"
begin k2 "$folder" "$(cksum <"$0")" 6000
[[ $(uname -sm) == "Linux x86_64" ]] || fail "k2 has wheels for Linux on x86_64 alone"
for tool in gcc nm; do command -v $tool >/dev/null || fail "$tool is not installed"; done

# A shim of pyenv exists for versions that are not active too, so each candidate has to run.
python=""
for candidate in python3.10 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.10.*/bin/python "$(uv python find 3.10 2>/dev/null)"; do
  if [[ -n $candidate ]] && "$candidate" -c 'import ensurepip, sys; sys.exit(sys.version_info[:2] != (3, 10))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
[[ -n $python ]] || fail "there is no Python 3.10"
"$python" -m venv "$folder" >/dev/null 2>&1 || fail "its venv cannot be made"
install() { timeout 300 "$folder/bin/python" -m pip install --quiet --no-compile --no-cache-dir --retries 2 "$@" >/dev/null 2>&1; }
# The wheels for all Pythons have tags that fit this one ("py3.9-none-any" means py3 or 9); the hash says which it is.
echo "k2==1.23.4 --hash=sha256:1404589732fdb7f6f5bf62297a20dd73318b7b4f2e10dd52dc3d5b6669688a4c" >"$folder/k2.txt"
{ install --no-deps -r "$folder/k2.txt" && install --no-deps torch==1.13.1 typing_extensions; } ||
  fail "pip cannot install k2==1.23.4 and torch==1.13.1"
install "numpy<2" graphviz safetensors httpx || fail "pip cannot install numpy, graphviz, safetensors and httpx"

lib=$(echo "$folder"/lib/python3.10/site-packages/torch/lib)
rm -rf "$lib"/../{include,test}
stub() { # NAME PREFIX: a library of this soname with every symbol that torch lacks and that begins so
  # shellcheck disable=SC2016 # awk's own variables
  nm -D --undefined-only "$lib"/libtorch_cuda*.so | awk -v prefix="$2" '
    { sub(/@.*/, "", $2) }
    index($2, prefix) == 1 && !seen[$2]++ { print "void " $2 "(void) { __builtin_trap(); }" }' >"$folder/stub.c"
  echo "$1 { global: *; };" >"$folder/stub.map"
  gcc -shared -fPIC -o "$lib/$1" "$folder/stub.c" -Wl,-soname,"$1" -Wl,--version-script="$folder/stub.map"
}
{ stub libcublas.so.11 cublas && stub libcublasLt.so.11 cublasLt && stub libcudnn.so.8 cudnn; } || fail "gcc cannot make the stubs"
why=$("$folder/bin/python" -W ignore -c 'import k2, numpy, safetensors.numpy, httpx' 2>&1) || fail "$(tail -n 1 <<<"$why")"
finish
