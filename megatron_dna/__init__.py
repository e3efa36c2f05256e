"""Genomes in, a Megatron-trained DNA BERT with recurrent memory out, usable from Hugging Face."""

__version__ = "0.1.0"
