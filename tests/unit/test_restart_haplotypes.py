"""A run with `--vcf` that is killed again and again ends in the files of one that was not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_dna.data.preprocess import PreprocessOptions
from tests.unit.genome_files import TOOL, child_environment, files
from tests.unit.variant_files import VARIANT_HOLDOUT

# The tool, with a line in the journal for every document, and slow enough to be watched.
SLOW = """
import os, runpy, sys, time
from megatron_dna.data import encode, output

output.CHECKPOINT_BASES = 1
original = encode._encode

def slow(*args):
    time.sleep(float(os.environ["PAUSE"]))
    return original(*args)

encode._encode = slow
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
KILLS = {  # numbers of lines in the journal
    "windows": ((), (2, 20, 40, 65)),
    "whole": (("--variant-context", "all"), (3, 20)),
    "new windows": (("--drop-duplicate-windows", "64"), (20, 40)),
}


def start(arguments: list[str], pause: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(TOOL), *arguments],
        env=child_environment() | {"PAUSE": str(pause)},
        stdout=subprocess.DEVNULL,
    )


def kill_at(child: subprocess.Popen[bytes], journal: Path, num_lines: int) -> bool:
    """SIGKILL as soon as the journal has so many lines; whether the child was still running."""
    while child.poll() is None:
        if journal.exists() and len(journal.read_bytes().splitlines()) >= num_lines:
            break
        time.sleep(0.001)
    child.kill()
    return child.wait() == -signal.SIGKILL


@pytest.mark.parametrize("how", KILLS)
def test_a_run_with_haplotypes_killed_on_its_way_ends_in_the_same_bytes(
    variant_options: Callable[..., PreprocessOptions], how: str
) -> None:
    """In the reference and amid the haplotypes; a failure would lose or repeat their sequence."""
    options = variant_options()
    more, kills = KILLS[how]
    arguments = ["--fasta", str(options.fasta[0]), "--tokenizer", str(options.tokenizer)]
    arguments += ["--output-prefix", str(options.output_prefix), "--reverse-complement"]
    arguments += ["--vcf", str(options.haplotypes.vcf[0]), "--holdout", *VARIANT_HOLDOUT]
    arguments += more or ("--variant-context", "40")
    folder = options.output_prefix.parent
    assert start(arguments, pause=0).wait() == 0
    expected = files(folder)
    for path in folder.iterdir():
        path.unlink()
    num_killed = 0
    for num_lines in kills:
        num_killed += kill_at(start(arguments, pause=0.02), folder / "p.journal.partial", num_lines)
        assert not {"p.json", "p_train.idx", "p_train.coordinates.npz"} & files(folder).keys()
    assert num_killed == len(kills)
    assert start(arguments, pause=0).wait() == 0
    assert files(folder) == expected
