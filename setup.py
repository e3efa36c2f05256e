"""Build of the C++ core; everything else about the package is in pyproject.toml.

Environment: MEGATRON_DNA_WERROR=1 turns warnings into errors; MEGATRON_DNA_SANITIZE=1 builds with
AddressSanitizer and UndefinedBehaviorSanitizer (`make test-sanitize`).
"""

import os
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

flags = ["-O3", "-Wall", "-Wextra", "-Wconversion"]
link_flags = []
if os.environ.get("MEGATRON_DNA_WERROR") == "1":
    flags.append("-Werror")
if os.environ.get("MEGATRON_DNA_SANITIZE") == "1":
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    flags += [*sanitize, "-O1", "-g", "-fno-omit-frame-pointer"]
    link_flags += sanitize

ParallelCompile("MEGATRON_DNA_BUILD_JOBS").install()
setup(
    ext_modules=[
        Pybind11Extension(
            "megatron_dna._core",
            sorted(str(path) for path in Path("csrc").glob("*.cpp")),
            include_dirs=["csrc"],
            depends=sorted(str(path) for path in Path("csrc").glob("*.hpp")),
            cxx_std=20,
            extra_compile_args=flags,
            extra_link_args=link_flags,
        )
    ],
    cmdclass={"build_ext": build_ext},
)
