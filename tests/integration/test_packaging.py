"""What a user installs: pins in range, a whole wheel, set-up that says what it lacks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def pins(python: str) -> dict[str, Requirement]:
    """The lines of constraints.txt that apply on a Python version, by canonical name."""
    found: dict[str, Requirement] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            assert canonical(pin.name) not in found, f"two pins of {pin.name} on {python}"
            found[canonical(pin.name)] = pin
    return found


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return name.lower().replace("_", "-").replace(".", "-")


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_within_its_range(python: str) -> None:
    """If not, `make` installs whatever is newest, or pip finds no solution."""
    optional = PROJECT["optional-dependencies"]
    requirements = map(Requirement, PROJECT["dependencies"] + optional["dev"] + optional["gpu"])
    pinned = pins(python)
    for requirement in requirements:
        if requirement.marker and not requirement.marker.evaluate({"python_version": python}):
            continue
        pin = pinned[canonical(requirement.name)]
        (specifier,) = pin.specifier
        assert specifier.operator == "==", f"{pin} is not an exact pin"
        assert specifier.version in requirement.specifier, f"{pin} is outside {requirement}"


@pytest.mark.parametrize(
    ("python", "megatron_core", "transformer_engine"),
    [
        ("3.10", "0.16.1", "2.12.0"),
        ("3.11", "0.16.1", "2.12.0"),
        ("3.12", "0.19.2", "2.17.1"),
        ("3.13", "0.19.2", "2.17.1"),
    ],
)
def test_engines_pair(python: str, megatron_core: str, transformer_engine: str) -> None:
    """Megatron-Core 0.16 runs on Transformer Engine 2.9 to 2.12, 0.19 on 2.17 (its own matrix)."""
    pinned = pins(python)
    assert str(pinned["megatron-core"].specifier) == f"=={megatron_core}"
    assert str(pinned["transformer-engine"].specifier) == f"=={transformer_engine}"


def test_apex_is_never_required() -> None:
    """PyPI's `apex` is another package; NVIDIA's is not there."""
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    names = {canonical(Requirement(line).name) for group in groups for line in group}
    assert "apex" not in names | set(pins("3.11")) | set(pins("3.12"))


@pytest.fixture(scope="module")
def source_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build needs from a clone, without anything built."""
    target = tmp_path_factory.mktemp("source")
    built = shutil.ignore_patterns("*.so", "__pycache__")
    for folder in ("csrc", "megatron_dna", "tools"):
        shutil.copytree(ROOT / folder, target / folder, ignore=built)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, target)
    return target


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return its output, failed or not."""
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, text=True, capture_output=True
    )


def test_wheel_holds_the_extension_and_every_package(source_copy: Path, tmp_path: Path) -> None:
    """`pip install .` gives a package that imports its C++ core from anywhere."""
    build = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path, ".")
    result = run(sys.executable, *build, cwd=source_copy)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("megatron_dna-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "megatron_dna").rglob("*.py")}
    assert modules <= set(names)
    assert {"megatron_dna/py.typed", "megatron_dna/_core.pyi"} <= set(names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"megatron_dna"}
    code = "import megatron_dna._core as core; print(core.__file__)"
    result = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert result.stdout.startswith(str(tmp_path / "site")), result.stderr


def test_source_distribution_can_be_built_from(source_copy: Path, tmp_path: Path) -> None:
    """Headers are easily forgotten: without them a source distribution does not compile."""
    result = run(
        sys.executable, "setup.py", "-q", "sdist", "--formats=gztar", "-d", tmp_path,
        cwd=source_copy,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    core = {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir()}
    assert core | {"setup.py", "pyproject.toml", "constraints.txt", "LICENSE"} <= names


def test_the_image_gets_what_it_is_built_from_and_what_jobs_run() -> None:
    """A file that was renamed would be missed by whoever builds the image, and by no other test."""
    lines = (ROOT / "slurm/Dockerfile").read_text(encoding="utf-8").splitlines()
    copies = [line.split()[1:] for line in lines if line.startswith("COPY ")]
    copied = {source for *sources, _ in copies for source in sources}
    for *sources, target in copies:
        assert target == "./" or sources == [target], "a file keeps its place"
    assert all((ROOT / source).exists() for source in copied), copied
    scripts = (path.read_text(encoding="utf-8") for path in (ROOT / "slurm").glob("*.sbatch"))
    run_by_jobs = {path for text in scripts for path in re.findall(r"[\w/]+\.py\b", text)}
    built_from = {"setup.py", "pyproject.toml", PROJECT["readme"], "LICENSE", "csrc"}
    needed = run_by_jobs | built_from | {"megatron_dna", "examples", "slurm/pretrain.sbatch"}
    assert {"tools/launch.py", "pretrain_dna_bert.py"} <= run_by_jobs
    assert {path for path in needed if not {path, path.partition("/")[0]} & copied} == set()


def shim(folder: Path, name: str, script: str) -> Path:
    """An executable shell script that stands in for a program."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def check_prerequisites(python: str | Path, **environment: str) -> tuple[int, str]:
    """Exit status and message of tools/check_prerequisites.sh."""
    result = run("bash", "tools/check_prerequisites.sh", python, cwd=ROOT, **environment)
    return result.returncode, result.stderr


def test_set_up_passes_here() -> None:
    """The checks must not refuse a machine on which set-up works."""
    assert check_prerequisites(sys.executable) == (0, "")


def test_set_up_names_what_is_missing(tmp_path: Path) -> None:
    """One line that names the thing and the fix, before pip fails in its own words."""
    status, message = check_prerequisites("python-of-nowhere")
    assert (status, "make PYTHON=" in message) == (1, True)

    version = 'case "$1" in --version) echo Python 3.8.1;; *) exit 1;; esac'
    status, message = check_prerequisites(shim(tmp_path, "old-python", version))
    assert status == 1
    assert "Python 3.8.1; Python 3.10 or newer is needed" in message

    bare = f'case "$2" in *ensurepip*) exit 1;; *) exec {sys.executable} "$@";; esac'
    status, message = check_prerequisites(shim(tmp_path, "no-venv", bare))
    assert (status, "apt-get install python3-venv" in message) == (1, True)

    headless = f'case "$2" in *sysconfig*) echo /nowhere;; *) exec {sys.executable} "$@";; esac'
    status, message = check_prerequisites(shim(tmp_path, "no-headers", headless))
    assert (status, "apt-get install python3-dev" in message) == (1, True)

    status, message = check_prerequisites(sys.executable, CXX="compiler-of-nowhere")
    assert (status, "apt-get install g++" in message) == (1, True)

    status, message = check_prerequisites(sys.executable, CXX=str(shim(tmp_path, "old", "exit 1")))
    assert (status, "does not compile C++20" in message) == (1, True)
