#!/usr/bin/env python3
"""The whole main path on real human DNA: tokenizer, data, model, and its use from transformers.

Every step is a command that works on its own; it is printed before it runs. A step whose output is
there is not run again, and training continues from its newest checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from megatron_dna.training.logs import quiet_libraries

ROOT = Path(__file__).resolve().parent.parent
FASTA = "examples/data/human_chr20_1-4000000.fa.gz"
HOLDOUT = "20:3000001-4000000"
REGION = "20:3500001-3500400"


class StepError(Exception):
    """A command of the quickstart ended with an error."""


def main() -> int:
    """Run what is not done yet and say what was made."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="for the pretraining step"
    )
    args = parser.parse_intermixed_args()
    os.chdir(ROOT)
    start = time.monotonic()
    try:
        numbers = run_all(args.output_dir, args.overrides)
    except StepError as error:
        print(f"\nquickstart stopped: {error}", file=sys.stderr)
        return 1
    print_summary(args.output_dir, numbers, time.monotonic() - start)
    return 0


def run_all(out: Path, overrides: list[str]) -> dict[str, float]:
    """All steps; returns the numbers of the evaluation."""
    tokenizer, data, run = out / "tokenizer.json", out / "chr20", out / "tiny"
    out.mkdir(parents=True, exist_ok=True)
    python = [sys.executable]
    step(
        "train a BPE tokenizer of 512 tokens, without the held-out megabase",
        [*python, "tools/train_tokenizer.py", "--fasta", FASTA, "--holdout", HOLDOUT,
         "--vocab-size", "512", "--output", str(tokenizer)],
        makes=tokenizer,
    )  # fmt: skip
    step(
        "turn both strands into token ids, the held-out megabase apart",
        [*python, "tools/preprocess_genome.py", "--fasta", FASTA, "--holdout", HOLDOUT,
         "--tokenizer", str(tokenizer), "--output-prefix", str(data), "--reverse-complement"],
        makes=Path(f"{data}.json"),
    )  # fmt: skip
    step(
        "pretrain on two processes: tensor and sequence parallelism",
        [*python, "-m", "torch.distributed.run", "--nproc_per_node", "2", "pretrain_dna_bert.py",
         "--config", "examples/tiny.yaml", f"data.tokenizer={tokenizer}",
         f"data.train=[{{prefix: {data}_train}}]", f"data.valid=[{{prefix: {data}_valid}}]",
         f"train.output_dir={run}", "parallel.tensor_model_parallel_size=2",
         "parallel.sequence_parallel=true", *overrides],
    )  # fmt: skip
    step(
        "score the held-out megabase",
        [*python, "tools/evaluate.py", "--checkpoint", str(run), "--output",
         str(out / "evaluation.json"), "train.eval_iters=32"],
    )  # fmt: skip
    model = out / "model" / newest(run)
    step(
        "convert to Hugging Face",
        [*python, "tools/convert_checkpoint.py", "to-hf", "--checkpoint", str(run),
         "--output", str(model)],
        makes=model,
    )  # fmt: skip
    step(
        "fill masks in held-out DNA with transformers",
        [*python, "examples/fill_masks.py", "--model", str(model), "--fasta", FASTA,
         "--region", REGION],
    )  # fmt: skip
    numbers: dict[str, float] = json.loads((out / "evaluation.json").read_text())
    draw(run, out / "loss.png", numbers)
    return numbers


def step(what: str, command: list[str], makes: Path | None = None) -> None:
    """Print and run one command, unless what it makes is there."""
    print(f"\n== {what}", flush=True)
    shown = ["python", *command[1:]] if command[0] == sys.executable else command
    print(f"$ {shlex.join(shown)}", flush=True)
    if makes is not None and makes.exists():
        print(f"{makes} is there already: skipped", flush=True)
        return
    start = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        raise StepError(f"'{what}' ended with status {status}; the message above says why")
    print(f"({time.monotonic() - start:.0f} s)", flush=True)


def newest(run: Path) -> str:
    """Name of the newest checkpoint: each is converted into a folder of its own."""
    return (run / "checkpoints" / "latest").read_text().strip()


def draw(run: Path, output: Path, numbers: dict[str, float]) -> None:
    """The loss curve with both baselines."""
    quiet_libraries()
    from megatron_dna.training.plots import plot_losses

    baselines = {name: numbers[f"{name}_loss"] for name in ("unigram", "uniform")}
    plot_losses(run / "metrics.jsonl", output, baselines)


def print_summary(out: Path, numbers: dict[str, float], seconds: float) -> None:
    """What was made, where it lies, how good it is, what to try next."""
    rows = [
        ("tokenizer", out / "tokenizer.json"),
        ("data", f"{out}/chr20_{{train,valid}}.{{bin,idx}}, manifest {out}/chr20.json"),
        ("run", f"{out}/tiny (metrics.jsonl, tensorboard, checkpoints)"),
        ("model", f"{out}/model/{newest(out / 'tiny')} (AutoModelForMaskedLM.from_pretrained)"),
        ("loss curve", out / "loss.png"),
    ]
    print(f"\n== done in {seconds:.0f} s")
    for name, where in rows:
        print(f"  {name:11} {where}")
    print("\nheld-out loss (lower is better)   nats a token   bits a base")
    for label, prefix in (
        ("this model", ""), ("unigram of the training tokens", "unigram_"),
        ("uniform", "uniform_"),
    ):  # fmt: skip
        loss, bits = numbers[f"{prefix}loss"], numbers[f"{prefix}bits_per_base"]
        print(f"  {label:31} {loss:12.4f} {bits:13.4f}")
    print(
        "\nnext: train it longer, from where it is\n"
        f"  python tools/quickstart.py --output-dir {out} train.train_iters=1200\n"
        "or watch it: tensorboard --logdir "
        f"{out}/tiny/tensorboard; or use it: examples/fill_masks.py"
    )


if __name__ == "__main__":
    sys.exit(main())
