"""A run with `--vcf` that is killed again and again ends in the files of one that was not."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from megatron_dna.data.options import PreprocessOptions
from tests.unit.genome_files import KILLED, TOOL, child_environment, files
from tests.unit.variant_files import VARIANT_HOLDOUT

PROGRAM = f"""{KILLED}
import runpy, sys
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
KILLS = {  # after so many more lines in the journal
    "windows": ((), (2, 18, 20, 25)),
    "whole": (("--variant-context", "all"), (3, 17)),
    "new windows": (("--drop-duplicate-windows", "64"), (20, 20)),
}


def run(arguments: list[str], kill_line: int = -1) -> int:
    """Exit status of the tool, which is killed as `KILLED` says."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(TOOL), *arguments],
        env=child_environment() | {"KILL_LINE": str(kill_line), "KILL_DELAY": "0"},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode


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
    assert run(arguments) == 0
    expected = files(folder)
    for path in folder.iterdir():
        path.unlink()
    for kill_line in kills:
        assert run(arguments, kill_line) == -signal.SIGKILL
        assert not {"p.json", "p_train.idx", "p_train.coordinates.npz"} & files(folder).keys()
    assert run(arguments) == 0
    assert files(folder) == expected
