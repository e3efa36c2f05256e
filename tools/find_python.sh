#!/usr/bin/env bash
# Prints the path of a Python of one version, on PATH or among pyenv's; nothing if there is none.
# Usage: find_python.sh 3.12
set -uo pipefail

version="${1:?usage: find_python.sh VERSION}"
for python in $(type -ap "python$version") "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python; do
    # A shim of pyenv's is on PATH even where no such version is chosen.
    if [ "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$version" ]; then
        "$python" -c 'import sys; print(sys.executable)'
        exit 0
    fi
done
