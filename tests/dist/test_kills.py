"""SIGKILL at random moments; `make soak` does 30 of them."""

from __future__ import annotations

from pathlib import Path

from tests.soak import soak


def test_a_run_that_is_killed_again_and_again_ends_as_an_unbroken_one(tmp_path: Path):
    """One bit of difference means that a crash at some moment changes what a team has paid for."""
    kinds = [("torchrun", True), ("one rank", False), ("all ranks", True)]
    assert len(soak(tmp_path, kinds, seed=1)["kills"]) == 3
