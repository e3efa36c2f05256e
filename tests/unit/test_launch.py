"""What the launcher sets for the GPUs that are here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.launch import max_connections


@pytest.mark.parametrize(
    ("answer", "want"),
    [("9.0\n9.0", "1"), ("8.0", "1"), ("10.0\n10.0", "32"), ("12.0\n9.0", "1"),
     ("NVIDIA-SMI has failed", "1"), (None, "1")],
)  # fmt: skip
def test_connections_follow_the_oldest_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str | None, want: str
):
    """One connection too many on Hopper, and nothing of TP hides."""
    monkeypatch.setenv("PATH", str(tmp_path))
    if answer is not None:
        (tmp_path / "answer").write_text(f"{answer}\n")
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\nwhile read -r l; do echo $l; done < {tmp_path}/answer\n")
        script.chmod(0o755)
    assert max_connections() == want
