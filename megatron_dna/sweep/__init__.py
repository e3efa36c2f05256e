"""Trials of a run's options: which to try (spec), what is known of each (store), running them."""
