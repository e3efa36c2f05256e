"""Build of the C++ core; everything else about the package is in pyproject.toml."""

import os
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

flags = ["-O3", "-Wall", "-Wextra", "-Wconversion"]
if os.environ.get("MEGATRON_DNA_WERROR") == "1":
    flags.append("-Werror")

setup(
    ext_modules=[
        Pybind11Extension(
            "megatron_dna._core",
            sorted(str(path) for path in Path("csrc").glob("*.cpp")),
            include_dirs=["csrc"],
            depends=sorted(str(path) for path in Path("csrc").glob("*.hpp")),
            cxx_std=20,
            extra_compile_args=flags,
        )
    ],
    cmdclass={"build_ext": build_ext},
)
