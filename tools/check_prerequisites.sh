#!/usr/bin/env bash
# Says what the machine lacks before pip fails in a way that takes reading.
# Usage: check_prerequisites.sh PYTHON. Exit status 1 and one line a missing thing.
set -uo pipefail

python="${1:?usage: check_prerequisites.sh PYTHON}"
missing=0

lacks() {
    echo "$1" >&2
    missing=1
}

if ! command -v "$python" >/dev/null; then
    lacks "$python is not there: apt-get install python3 python3-venv python3-dev, or name another with make PYTHON=..."
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    lacks "$python is $("$python" --version 2>&1); Python 3.10 or newer is needed: name one with make PYTHON=python3.12"
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    lacks "$python cannot make virtual environments: apt-get install python3-venv"
fi

compiler="${CXX:-g++}"
include="$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')"
if ! command -v "$compiler" >/dev/null; then
    lacks "the C++ compiler $compiler is not there: apt-get install g++, or name another with CXX=..."
elif ! echo '#include <span>' | "$compiler" -std=c++20 -fsyntax-only -x c++ - 2>/dev/null; then
    lacks "$compiler does not compile C++20: g++ 10 or clang 12 and newer do"
fi
if [ ! -f "$include/Python.h" ]; then
    lacks "Python.h is not in $include: apt-get install python3-dev"
fi
exit "$missing"
