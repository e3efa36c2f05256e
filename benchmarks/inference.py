"""A genome streamed through a model: its speed beside the bare model's, and its memory.

    python benchmarks/inference.py [--measure speed memory] [--fasta F] [--tokenizer T]

Without a tokenizer it trains one of 4,096 tokens on the sequence of examples/data. Models have
random weights. `speed` cuts contigs of log-uniform length out of the FASTA, as a draft assembly
has, and compares CPU time (one thread, in turns) for the same bases of

- the whole command's work, FASTA in and Zarr out, model loaded;
- the bare model on the very batches that the stream made, ready in memory;
- a loop as many write it on transformers: for each contig the tokenizer cuts and pads it to whole
  segments (`return_overflowing_tokens`, `padding="max_length"`), the model reads that batch, and
  states are averaged over tokens.

`memory` compares the peak of the process for the FASTA's first contig and for one contig made of
it by repetition (`--num-bases`), with a model of one small layer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from machine import cpu_model
from tokenizers import Tokenizer
from transformers import ModernBertConfig, ModernBertModel, PreTrainedTokenizerFast

from megatron_dna.genome.fasta import read_fasta
from megatron_dna.hf.modeling_rmt import RmtConfig, RmtModel
from megatron_dna.inference.embed import EmbedOptions, embed_genome
from megatron_dna.inference.stream import StreamModel
from megatron_dna.tokenizer.bpe import DnaTokenizer
from megatron_dna.tokenizer.train import train_tokenizer
from megatron_dna.training.logs import quiet_libraries

ROOT = Path(__file__).parents[1]
EXAMPLE_FASTA = ROOT / "examples/data/human_chr20_1-4000000.fa.gz"
LINE = 80
RESOLUTION = 128

# Prints JSON: peak memory of the process in MiB and the CPU seconds of the work.
ONE_RUN = """
import json, re, sys, time
from pathlib import Path
import torch
from megatron_dna.inference.embed import EmbedOptions, embed_genome
from megatron_dna.inference.stream import StreamModel
from megatron_dna.training.logs import quiet_libraries
quiet_libraries()
torch.set_num_threads(1)
folder, fasta, output, batch_size = sys.argv[1:]
model = StreamModel(Path(folder), torch.device("cpu"), torch.float32)
start = time.process_time()
embed_genome(model, Path(fasta), Path(output), EmbedOptions(1024, "mean", None, int(batch_size)))
# Not ru_maxrss: that starts with what the process had that started this one.
peak_kib = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(json.dumps({"peak_mib": int(peak_kib) / 1024, "cpu_s": time.process_time() - start}))
"""


def main() -> None:
    """Measure and print."""
    args = parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch)
        tokenizer = args.tokenizer or folder / "trained.json"
        if args.tokenizer is None:
            train_tokenizer([EXAMPLE_FASTA], 4096, tokenizer)
        print(json.dumps({"machine": cpu_model(), "torch": torch.__version__}))
        if "speed" in args.measure:
            for num_mem_tokens in (0, 10):
                result = measure_speed(args, folder, tokenizer, num_mem_tokens)
                print(json.dumps(result, indent=1), flush=True)
        if "memory" in args.measure:
            measure_memory(args, folder, tokenizer)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", nargs="+", choices=("speed", "memory"), default=["speed"])
    parser.add_argument(
        "--fasta", type=Path, default=EXAMPLE_FASTA, help="its first contig is used"
    )
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json")
    parser.add_argument("--num-layers", type=int, default=6, help="of the model for speed")
    parser.add_argument("--hidden-size", type=int, default=256, help="of the model for speed")
    parser.add_argument("--segment-size", type=int, default=512, help="tokens")
    parser.add_argument("--batch-size", type=int, default=16, help="segments")
    parser.add_argument("--rounds", type=int, default=5, help="of speed")
    parser.add_argument("--num-contigs", type=int, default=60, help="of speed")
    parser.add_argument(
        "--contig-length", type=int, nargs=2, default=(500, 50_000), metavar=("MIN", "MAX")
    )
    parser.add_argument(
        "--num-bases", type=int, nargs="+", default=[1_000_000_000], help="long contigs of memory"
    )
    parser.add_argument("--scratch", type=Path, help="folder for temporary files")
    return parser.parse_args()


def save_model(
    folder: Path, tokenizer: Path, segment_size: int, num_layers: int, hidden_size: int, memory: int
) -> int:
    """Write a model folder; returns its number of parameters."""
    vocabulary = DnaTokenizer.from_file(tokenizer)
    shape: dict[str, Any] = {
        "vocab_size": vocabulary.vocab_size, "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size // 2, "num_hidden_layers": num_layers,
        "num_attention_heads": max(1, hidden_size // 64),
        "max_position_embeddings": segment_size, "decoder_bias": True,
        "pad_token_id": vocabulary.pad_id, "cls_token_id": vocabulary.cls_id,
        "sep_token_id": vocabulary.sep_id, "bos_token_id": vocabulary.cls_id,
        "eos_token_id": vocabulary.sep_id,
    }  # fmt: skip
    torch.manual_seed(0)
    model = (
        RmtModel(RmtConfig(**shape, segment_size=segment_size, num_mem_tokens=memory))
        if memory
        else ModernBertModel(ModernBertConfig(**shape))
    )
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    return sum(parameter.numel() for parameter in model.parameters())


def measure_speed(
    args: argparse.Namespace, folder: Path, tokenizer: Path, num_mem_tokens: int
) -> dict[str, Any]:
    """CPU seconds for the same bases, three ways."""
    name = f"speed_{num_mem_tokens}"
    parameters = save_model(
        folder / name, tokenizer, args.segment_size, args.num_layers, args.hidden_size,
        num_mem_tokens,
    )  # fmt: skip
    contigs = draw_contigs(args)
    fasta = folder / f"{name}.fa"
    fasta.write_text("".join(f">{i}\n{text}\n" for i, text in enumerate(contigs)))
    model = StreamModel(folder / name, torch.device("cpu"), torch.float32)
    options = EmbedOptions(RESOLUTION, "mean", None, args.batch_size)
    runs = 0

    def stream() -> None:
        nonlocal runs
        runs += 1
        embed_genome(model, fasta, folder / f"{name}_{runs}", options)

    batches: list[tuple[Any, Any]] = []
    hook = model.encoder.register_forward_pre_hook(
        lambda module, *inputs: batches.append(inputs), with_kwargs=True
    )
    stream()
    hook.remove()

    @torch.inference_mode()
    def bare() -> None:
        for inputs, options in batches:
            model.encoder(*inputs, **options)

    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(tokenizer)), pad_token="[PAD]",
        cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", unk_token="[UNK]",
    )  # fmt: skip

    @torch.inference_mode()
    def loop() -> None:
        for text in contigs:
            inputs = fast(
                text, max_length=args.segment_size, truncation=True, padding="max_length",
                return_overflowing_tokens=True, return_tensors="pt",
            )  # fmt: skip
            mask = inputs["attention_mask"]
            states = model.encoder(input_ids=inputs["input_ids"], attention_mask=mask)[0]
            weights = mask[..., None].float()
            ((states * weights).sum(1) / weights.sum(1)).numpy()

    ways = {"stream": stream, "bare": bare} | ({} if num_mem_tokens else {"loop": loop})
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(args.rounds):
        for way in list(ways)[:: 1 if number % 2 else -1]:  # so that a drift falls on all of them
            start = time.process_time()
            ways[way]()
            seconds[way].append(time.process_time() - start)
    result: dict[str, Any] = {
        "num_mem_tokens": num_mem_tokens, "parameters": parameters, "contigs": len(contigs),
        "bases": sum(map(len, contigs)), "batches": len(batches),
        "rows_a_batch": sum(len(ids) for (ids,), _ in batches) / len(batches),
    }  # fmt: skip
    for way, values in seconds.items():
        result[f"{way}_s"] = statistics.median(values)
        if way != "stream":
            pairs = zip(values, seconds["stream"], strict=True)
            result[f"speed_over_{way}"] = statistics.median(other / ours for other, ours in pairs)
    return result


def draw_contigs(args: argparse.Namespace) -> list[str]:
    """Parts of the FASTA's first contig without N, of log-uniform length."""
    sequence = next(read_fasta(args.fasta)).sequence.decode()
    draw = random.Random(0)
    shortest, longest = args.contig_length
    found: list[str] = []
    while len(found) < args.num_contigs:
        length = round(shortest * (longest / shortest) ** draw.random())
        start = draw.randrange(len(sequence) - length)
        if "N" not in (text := sequence[start : start + length]):
            found.append(text)
    return found


def measure_memory(args: argparse.Namespace, folder: Path, tokenizer: Path) -> None:
    """Peaks of a process each, for the contig and for longer ones made of it."""
    save_model(folder / "memory", tokenizer, 128, 1, 16, 0)
    sequence = bytes(next(read_fasta(args.fasta)).sequence)
    for number, num_bases in enumerate((len(sequence), *args.num_bases)):
        fasta = folder / "long.fa"
        write_repeated(fasta, sequence, num_bases)
        done = subprocess.run(
            [sys.executable, "-c", ONE_RUN, str(folder / "memory"), str(fasta),
             str(folder / f"memory_{number}"), str(args.batch_size)],
            capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        print(json.dumps({"bases": num_bases, **json.loads(done.stdout)}), flush=True)


def write_repeated(path: Path, sequence: bytes, num_bases: int) -> None:
    """One contig of that many bases, the sequence again and again."""
    with path.open("wb") as file:
        file.write(b">long\n")
        rest = b""
        while num_bases:
            part = sequence[:num_bases]
            num_bases -= len(part)
            text = rest + part
            whole = len(text) // LINE * LINE if num_bases else len(text)
            lines = (text[i : i + LINE] + b"\n" for i in range(0, whole, LINE))
            file.writelines(lines)
            rest = text[whole:]


if __name__ == "__main__":
    main()
