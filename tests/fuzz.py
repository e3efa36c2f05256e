"""Random input for the C++ core and the .idx reader, for as long as it is given.

    make fuzz            60 s, under AddressSanitizer and UndefinedBehaviorSanitizer
    python tests/fuzz.py --seconds 5 --target read_pair --seed 7

Every case is made from the seed and its number alone. A finding is a sanitizer's report, a crash,
an exception that is not a ValueError, or a result that is not the oracle's. The command that
repeats it is printed, or, where the process ends at once, in the file that the first line names.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from megatron_dna import _core
from megatron_dna.data.indexed import IndexedTokens
from megatron_dna.data.writer import IndexedWriter
from megatron_dna.genome.sequence import clean_sequence, find_stretches, reverse_complement
from megatron_dna.genome.variants import VariantOptions
from megatron_dna.tokenizer.bpe import DnaTokenizer
from megatron_dna.tokenizer.kmer import write_kmer_tokenizer
from tests.unit.test_bpe import SPECIALS, random_merges, write_spec
from tests.unit.test_bpe_trainer import learn, reference
from tests.unit.test_haplotypes import check_cuts, check_parts
from tests.unit.variant_files import SAMPLES, edits_of, random_case, read_all, spell, vcf_text

ODD = ["N" * 9, "N" * 10, "-", " ", "\n", "\0", "é", "\u3000", "[CLS", "acgt", "R", *SPECIALS]
NUMBERS = [0, 1, 2, 3, 127, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]


def make_text(rng: random.Random, tokens: list[str]) -> bytes:
    """DNA, some of it long enough for lanes, tokens, repeats, odd characters; at times no text."""
    parts: list[str] = []
    for _ in range(rng.randrange(12)):
        letters = rng.choice(["ACGT", "ACGTN", "AC", "A", "ACGTNRYacgtn-"])
        bases = "".join(rng.choices(letters, k=rng.randrange(rng.choice([3, 20, 200, 2000]))))
        parts.append(rng.choice([bases, bases[:9] * rng.randrange(30), rng.choice(tokens + ODD)]))
    text = bytearray("".join(parts).encode())
    if text and rng.random() < 0.1:
        text[rng.randrange(len(text))] = rng.randrange(256)
    return bytes(text)


def check_ids(rng: random.Random, path: Path) -> None:
    """Ids of some texts by the file, against those of `tokenizers`."""
    ours = DnaTokenizer.from_file(path)
    theirs = Tokenizer.from_file(str(path))
    tokens = [token for token in theirs.get_vocab() if token not in SPECIALS]
    for _ in range(20):
        text = make_text(rng, tokens)
        try:
            expected = theirs.encode(text.decode(), add_special_tokens=False).ids
        except UnicodeDecodeError:
            with contextlib.suppress(ValueError):  # overlong forms and the like may pass
                ours.encode(text)
            continue
        assert ours.encode(text).tolist() == expected, text


def encode_bpe(rng: random.Random, folder: Path) -> None:
    """BPE by a random list of merges."""
    num_merges, longest = rng.choice([(5, 6), (40, 20), (90, 64), (60, 150), (900, 64)])
    path = write_spec(folder / "t.json", random_merges(rng, num_merges, longest))
    try:
        check_ids(rng, path)
    except ValueError as error:
        if "must come after" not in str(error):  # that list has no encoding in linear time
            raise


def encode_kmers(rng: random.Random, folder: Path) -> None:
    """k-mers of any length, single nucleotides among them."""
    path = folder / "t.json"
    write_kmer_tokenizer(rng.choice([1, 2, 3, 4, 5]), path)
    check_ids(rng, path)


def train_bpe(rng: random.Random, folder: Path) -> None:
    """Merges, against those that `tokenizers` learns."""
    texts = [
        "".join(rng.choices("ACGNT"[: rng.randrange(1, 6)], k=rng.randrange(rng.choice([5, 400]))))
        * rng.choice([1, 1, 3])
        for _ in range(rng.randrange(8))
    ]
    options = rng.randrange(80), rng.randrange(1, 4), rng.choice([2, 5, 64])
    assert learn(texts, *options, step=rng.randrange(1, 9)) == reference(texts, *options), texts


def clean(rng: random.Random, folder: Path) -> None:
    """FASTA text of any bytes."""
    raw = make_text(rng, ["ACGT\r\n", "nnnn", "\x80"])
    with contextlib.suppress(ValueError):
        sequence, _ = clean_sequence(raw, rng.randrange(10))
        assert set(sequence) <= set(b"ACGTN")
        assert reverse_complement(reverse_complement(sequence)) == sequence
        for start, end in find_stretches(sequence, rng.randrange(1, 12)):
            assert 0 <= start < end <= len(sequence)


def read_pair(rng: random.Random, folder: Path) -> None:
    """A damaged .idx is refused, or every token of its .bin is read as it lies there."""
    vocab_size = rng.choice([100, 70_000])
    with IndexedWriter(folder / "p", vocab_size) as writer:
        for _ in range(rng.randrange(1, 6)):
            ids = [rng.randrange(vocab_size) for _ in range(rng.randrange(1, 30))]
            writer.add_document(np.array(ids, np.int32))
        writer.prepare()
        writer.publish()
    index, tokens = folder / "p.idx", folder / "p.bin"
    index.write_bytes(damage(rng, index.read_bytes()))
    if rng.random() < 0.2:
        tokens.write_bytes(damage(rng, tokens.read_bytes()))
    try:
        pair = IndexedTokens(str(folder / "p"))
    except ValueError:
        return
    read = [pair.read(i, 0, int(length)) for i, length in enumerate(pair.lengths)]
    assert np.concatenate(read).tobytes() == tokens.read_bytes()
    assert np.concatenate(list(pair.iter_chunks(7))).tobytes() == tokens.read_bytes()


def build_haplotypes(rng: random.Random, folder: Path) -> None:
    """Haplotypes of random records, whole and in parts, against those spelled out slowly."""
    contigs, records = random_case(rng.randrange(2**32), num_contigs=3)
    (folder / "v.vcf").write_text(vcf_text(records, SAMPLES))
    for variants in read_all(folder / "v.vcf", contigs):
        reference_bases = contigs[variants.contig]
        own = [record for record in records if record.contig == variants.contig]
        for haplotype in variants.haplotypes:
            edits = edits_of(own, SAMPLES.index(haplotype.sample), haplotype.number)
            text = spell(reference_bases, edits)
            assert haplotype.read(0, haplotype.length).decode() == text
            check_parts(haplotype, reference_bases, text, edits, rng)
            check_cuts(haplotype, reference_bases, edits)


def read_vcf(rng: random.Random, folder: Path) -> None:
    """A VCF file of odd or damaged lines is refused, or its haplotypes are whole."""
    contigs, records = random_case(rng.randrange(2**32), num_contigs=3)
    lines = vcf_text(records, SAMPLES).splitlines()
    for _ in range(rng.randrange(6)):
        at = rng.randrange(len(lines))
        fields = lines[at].split("\t")
        column = rng.randrange(len(fields))
        fields[column] = rng.choice(ODD_FIELDS.get(column, ODD_GENOTYPES))
        lines[at] = "\t".join(fields)
    text = "\n".join(lines).encode()
    (folder / "v.vcf").write_bytes(damage(rng, text) if rng.random() < 0.5 else text + b"\n")
    options = VariantOptions(
        unphased=rng.choice(["error", "skip", "random"]),
        on_ref_mismatch=rng.choice(["error", "skip"]),
    )
    with contextlib.suppress(ValueError):
        for variants in read_all(folder / "v.vcf", contigs, options):
            for haplotype in variants.haplotypes:
                bases = haplotype.read(0, haplotype.length) if haplotype.length else b""
                assert set(bases) <= set(b"ACGTN")
                starts, ref_lengths, alt_lengths = haplotype.edits()
                growth = int((alt_lengths - ref_lengths).sum())
                assert len(bases) == len(contigs[variants.contig]) + growth
                assert (starts[1:] >= (starts + ref_lengths)[:-1]).all()
                cut = rng.randrange(len(bases) + 1)
                parts = [p for p in ((0, cut), (cut, len(bases))) if p[0] < p[1]]
                assert b"".join(haplotype.read(*part) for part in parts) == bases


ODD_GENOTYPES = [
    *("0|1", "1|1", "0/1", "./.", ".", "1", "0", "|0|1", "/1|0", "0|1|1", "2|0", "99999999999|0"),
    *("", ":", "0|1:7", "7:0|1", "0|", "|", "x|y", "-1|0", "1048577|0", "0|0"),
]
ODD_FIELDS: dict[int, list[str]] = {
    0: ["c0", "c1", "c9", "", "#c0"],
    1: ["0", "1", "2", "-1", "", "x", "60", "61", "99999999999999999999", "9223372036854775807"],
    3: ["A", "a", "AAA", "R", "", "é", "N", "C" * 70],
    4: ["<DEL>", "*", ".", "A,<DEL>,*", "A,,C", "N" * 10, "ryk", "A[c1:3[", "", "AC" * 300],
    8: ["GT", "DP:GT", "GT:DP", "DP", "", ":GT", "GT:GT"],
}


def damage(rng: random.Random, content: bytes) -> bytes:
    """Some bytes changed, numbers overwritten, cut out or put in."""
    data = bytearray(content)
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        size = rng.choice([1, 4, 8])
        number = (rng.choice(NUMBERS) % 256**size).to_bytes(size, "little")
        kind = rng.randrange(4)
        if kind == 0:
            data[at : at + size] = number
        elif kind == 1:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 2:
            del data[at : at + rng.choice([1, 8, 12, 1000])]
        else:
            data[at:at] = number
    return bytes(data)


TARGETS: dict[str, Callable[[random.Random, Path], None]] = {
    function.__name__: function
    for function in (
        *(encode_bpe, encode_kmers, train_bpe, clean, read_pair),
        *(build_haplotypes, read_vcf),
    )
}


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--target", choices=TARGETS, help="only this one")
    parser.add_argument("--case", type=int, help="only this one, of --seed and --target")
    return parser.parse_args()


def run_case(target: str, seed: int, case: int, folder: Path) -> None:
    """One case; says how to repeat it if it ends in a finding."""
    command = f"python tests/fuzz.py --seed {seed} --target {target} --case {case}"
    (folder / "case").write_text(command)
    for path in folder.glob("*.*"):
        path.unlink()
    try:
        TARGETS[target](random.Random(f"{seed} {target} {case}"), folder)
    except BaseException:
        print(f"finding: {command}", flush=True)
        raise


def run(args: argparse.Namespace, folder: Path) -> None:
    """Takes the targets in turns until the time is over."""
    targets = [args.target] if args.target else list(TARGETS)
    print(f"seed {args.seed}, {_core.__file__}; what runs: {folder}/case", flush=True)
    end, done = time.monotonic() + args.seconds, Counter[str]()
    for case, target in ((case, target) for case in itertools.count() for target in targets):
        if time.monotonic() > end:
            print(f"no finding in {json.dumps(done)}")
            return
        run_case(target, args.seed, case, folder)
        done[target] += 1


def main() -> None:
    """Runs one case, or many."""
    args = parse_args()
    expected = os.environ.get("MEGATRON_DNA_EXPECT_CORE", "")
    if expected not in _core.__file__:
        sys.exit(f"{_core.__file__} is not the extension in {expected}")
    logging.disable()
    memory = Path("/dev/shm")  # the writer waits for the disk otherwise
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        if args.case is None:
            run(args, Path(folder))
        else:
            run_case(args.target, args.seed, args.case, Path(folder))


if __name__ == "__main__":
    main()
