#!/usr/bin/env python3
"""Fill masks in a stretch of DNA with a converted model: transformers only, no remote code.

    python examples/fill_masks.py --model runs/quickstart/model \\
        --fasta examples/data/human_chr20_1-4000000.fa.gz --region 20:3500001-3500400
"""

from __future__ import annotations

import argparse

import pysam
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer


def main() -> None:
    """Mask every seventh token of the region and print what the model puts there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of tools/convert_checkpoint.py")
    parser.add_argument("--fasta", required=True, help="indexed FASTA")
    parser.add_argument("--region", required=True, help="1-based, inclusive: 20:3500001-3500400")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForMaskedLM.from_pretrained(args.model).eval()
    with pysam.FastaFile(args.fasta) as fasta:
        sequence = fasta.fetch(region=args.region).upper()
    inputs = tokenizer(
        sequence,
        return_tensors="pt",
        truncation=True,
        max_length=model.config.max_position_embeddings,
    )
    original = inputs["input_ids"].clone()
    masked = torch.arange(4, original.shape[1] - 1, 7)
    inputs["input_ids"][0, masked] = tokenizer.mask_token_id
    with torch.no_grad():
        probabilities = model(**inputs).logits[0, masked].softmax(-1)
    best, choices = probabilities.topk(3)

    print(f"{args.region}, {original.shape[1] - 2} tokens, {len(masked)} of them masked")
    print(f"{'truth':>10}  {'probability':>11}  likeliest")
    for i, truth in enumerate(original[0, masked].tolist()):
        likeliest = ", ".join(
            f"{token} {p:.2f}"
            for token, p in zip(tokenizer.convert_ids_to_tokens(choices[i]), best[i], strict=True)
        )
        name = tokenizer.convert_ids_to_tokens(truth)
        print(f"{name:>10}  {probabilities[i, truth]:11.3f}  {likeliest}")


if __name__ == "__main__":
    main()
