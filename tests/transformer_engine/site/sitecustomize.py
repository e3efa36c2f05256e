"""Gives each Python process that finds this folder (PYTHONPATH) Transformer Engine on the CPU.

Ranks, launchers and servers of processes are started by name and know nothing of a test: this is
the one place that all of them pass, before they import anything.
"""

from tests.transformer_engine import standin

standin.install()
