"""Sequence design: constraints at every step, and frequencies of models that are known."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ModernBertForMaskedLM, ModernBertForSequenceClassification

from megatron_dna.hf.modeling_rmt import RmtForSequenceClassification
from megatron_dna.inference.constraints import make_constraints
from megatron_dna.inference.design import Sampler
from megatron_dna.inference.design_models import MaskedLm, Predictor
from megatron_dna.inference.design_output import check_output
from megatron_dna.tokenizer.bpe import DnaTokenizer
from megatron_dna.tokenizer.kmer import write_kmer_tokenizer
from tests.unit.data_files import write_tokenizer
from tests.unit.hf_models import save_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("design")


@pytest.fixture(scope="module")
def models(folder: Path, tokenizer_path: Path) -> dict[str, Path]:
    regressor = {"num_labels": 1, "classifier_pooling": "mean"}
    return {
        "plain": save_model(folder / "plain", tokenizer_path),
        "rmt": save_model(folder / "rmt", tokenizer_path, num_mem_tokens=5),
        "plain regressor": save_model(
            folder / "r", tokenizer_path, ModernBertForSequenceClassification, **regressor
        ),
        "rmt classifier": save_model(
            folder / "rc", tokenizer_path, RmtForSequenceClassification, num_labels=3,
            num_mem_tokens=5,
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def bases(folder: Path) -> DnaTokenizer:
    write_kmer_tokenizer(1, folder / "bases.json")
    return DnaTokenizer.from_file(folder / "bases.json")


def load(path: Path) -> MaskedLm:
    return MaskedLm(path, CPU, torch.float32, batch_size=3)


def total_variation(found: Counter, wanted: dict) -> float:
    count = sum(found.values())
    assert not set(found) - set(wanted)
    return sum(abs(found[key] / count - p) for key, p in wanted.items()) / 2


def test_a_known_joint_distribution_is_sampled(bases: DnaTokenizer):
    """Conditionals of a Markov chain, under constraints: its frequencies, by enumeration."""
    jump = np.random.default_rng(1).dirichlet(np.full(4, 0.7), 4)
    ids = [int(bases.encode(base)[0]) for base in "ACGT"]
    number = {i: n for n, i in enumerate(ids)}
    constraints = make_constraints(5, ["G@3"], (0.2, 0.6))

    def predict(rows, places):
        found = np.full((len(rows), bases.vocab_size), -50.0)
        for row, (sequence, place) in enumerate(zip(rows, places, strict=True)):
            p = np.ones(4)
            if place:
                p = p * jump[number[sequence[place - 1]]]
            if place < 4:
                p = p * jump[:, number[sequence[place + 1]]]
            found[row, ids] = np.log(p / p.sum())
        return found

    wanted = {}
    for letters in itertools.product(range(4), repeat=5):
        text = "".join("ACGT"[n] for n in letters)
        if constraints.are_met_by(text):
            wanted[text] = math.prod(jump[a, b] for a, b in itertools.pairwise(letters))
    total = sum(wanted.values())
    wanted = {text: p / total for text, p in wanted.items()}
    found: Counter = Counter()
    for number_of_step, steps in enumerate(Sampler(bases, constraints, predict).run(60, 400, 3)):
        if number_of_step >= 40:
            found.update(step.sequence for step in steps)
    assert total_variation(found, wanted) < 0.09
    assert total_variation(Counter(wanted.keys()), wanted) > 0.3  # what a uniform sampler has


def test_a_model_folder_that_knows_only_frequencies(folder: Path):
    """Weights of zero but the decoder's bias: tokens of two bases in the odds of the bias."""
    tokenizer = write_tokenizer(folder / "pairs.json")
    path = save_model(folder / "bias", tokenizer)
    model = ModernBertForMaskedLM.from_pretrained(path)
    nats = torch.randn(model.config.vocab_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.model.embeddings.tok_embeddings.weight.zero_()
        model.decoder.bias.copy_(nats)
    model.save_pretrained(path)
    lm = load(path)
    vocabulary = lm.tokenizer
    constraints = make_constraints(2, [], (0.5, 1.0))
    allowed = [a + b for a in "ACGT" for b in "ACGT" if constraints.are_met_by(a + b)]
    assert len(allowed) == 12
    odds = {pair: math.exp(nats[int(vocabulary.encode(pair)[0])]) for pair in allowed}
    wanted = {pair: p / sum(odds.values()) for pair, p in odds.items()}
    found: Counter = Counter()
    for number, steps in enumerate(Sampler(vocabulary, constraints, lm).run(40, 60, 1)):
        found.update(step.sequence for step in steps if number)
    assert total_variation(found, wanted) < 0.07
    assert total_variation(Counter(allowed), wanted) > 0.15


def test_steering_tilts_by_the_score(bases: DnaTokenizer):
    """Even odds, and ln 3 for each A: half of the bases are A, not a quarter."""

    def predict(rows, places):
        return np.zeros((len(rows), bases.vocab_size))

    def count(sequences):
        return np.array([sequence.count("A") for sequence in sequences], float)

    sampler = Sampler(
        bases, make_constraints(4, [], (0, 1)), predict, score=count, score_weight=math.log(3)
    )
    found: Counter = Counter()
    for number, steps in enumerate(sampler.run(60, 200, 0)):
        if number >= 20:
            found.update("".join(step.sequence for step in steps))
            assert [step.score for step in steps] == [s.sequence.count("A") for s in steps]
    assert found["A"] / sum(found.values()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("kind", "length"), [("plain", 60), ("rmt", 300)])
def test_constraints_hold_at_every_step(models, kind: str, length: int):
    """Motifs, GC and length; sequences change; the same seed gives the same, another others."""
    lm = load(models[kind])
    motifs = ["TATAAA@31", "GC@1", "acgtacgt@45"]
    constraints = make_constraints(length, motifs, (0.45, 0.55))

    def run(seed: int) -> list[list[str]]:
        run = Sampler(lm.tokenizer, constraints, lm).run(3, 25, seed)
        return [[step.sequence for step in steps] for steps in run]

    states = run(5)
    assert len(states) == 26
    for sequences in states:
        for sequence in sequences:
            assert len(sequence) == length
            assert sequence[30:36] == "TATAAA"
            assert sequence[:2] == "GC"
            assert sequence[44:52] == "ACGTACGT"
            gc = (sequence.count("G") + sequence.count("C")) / length
            assert 0.45 <= gc <= 0.55
            assert constraints.are_met_by(sequence)
    assert len({sequences[0] for sequences in states}) > 10
    assert run(5) == states
    assert run(6) != states
    borders = {
        tuple(lm.tokenizer.token_lengths[lm.tokenizer.encode(sequences[0])]) for sequences in states
    }
    assert len(borders) > 1  # tokens' borders move


def test_a_predictor_raises_its_score(models):
    """From the same starts: far above what the model alone reaches."""
    lm = load(models["plain"])
    predictor = Predictor(models["plain regressor"], CPU, torch.float32, batch_size=2)
    constraints = make_constraints(50, ["TATAAA@11"], (0.3, 0.7))

    def last(weight: float) -> tuple[float, float]:
        sampler = Sampler(lm.tokenizer, constraints, lm, score=predictor, score_weight=weight)
        states = list(sampler.run(4, 80, 0))
        assert all(constraints.are_met_by(step.sequence) for steps in states for step in steps)
        end = predictor([step.sequence for step in states[-1]])
        np.testing.assert_allclose(end, [step.score for step in states[-1]], atol=1e-5)
        return float(np.mean([step.score for step in states[0]])), float(end.mean())

    start, steered = last(200.0)
    _, alone = last(0.0)
    assert steered > start + 0.05
    assert steered > alone + 0.05


def test_models_are_read_as_transformers_reads_them(models):
    lm = load(models["plain"])
    model = ModernBertForMaskedLM.from_pretrained(models["plain"]).eval()
    text = "ACGTTTGACCAGATTACAGGCATG"
    ids = lm.tokenizer.encode(text).tolist()
    total = 0.0
    for i, token in enumerate(ids):
        masked = [1, *ids, 2]
        masked[i + 1] = lm.tokenizer.mask_id
        with torch.no_grad():
            total += float(model(torch.tensor([masked])).logits[0, i + 1].log_softmax(0)[token])
    assert lm.log_likelihood(text) == pytest.approx(total, abs=1e-4)

    classifier = RmtForSequenceClassification.from_pretrained(models["rmt classifier"]).eval()
    texts = [text * 12, text]
    scores = Predictor(models["rmt classifier"], CPU, torch.float32, 2, "LABEL_2")(texts)
    for one, score in zip(texts, scores, strict=True):
        with torch.no_grad():
            logits = classifier(torch.tensor([[1, *lm.tokenizer.encode(one).tolist(), 2]])).logits
        assert score == pytest.approx(float(logits[0].log_softmax(0)[2]), abs=1e-4)


@pytest.mark.parametrize(
    ("length", "motifs", "gc", "message"),
    [
        (20, ["GCGCGCGCGC@1"], (0.1, 0.4), r"--gc .* cannot be reached: .* 10 to 20 G and C"),
        (20, ["AAAAAAAAAA@1"], (0.6, 0.9), r"--gc .* cannot be reached: .* 0 to 10 G and C"),
        (20, [], (0.5, 0.5), r"--gc .* one number of G and C only \(10 of 20\)"),
        (20, [], (0.7, 0.3), r"0 <= LOW <= HIGH <= 1"),
        (20, ["MKVLA@3"], (0, 1), r"not 'M': is this DNA, not protein"),
        (20, ["@3"], (0, 1), "must have the letters"),
        (20, ["TATA"], (0, 1), r"LETTERS@BASE"),
        (20, ["TATA@18"], (0, 1), "within bases 1 to 20"),
        (20, ["TATA@0"], (0, 1), "within bases 1 to 20"),
        (20, ["TATA@3", "CC@5"], (0, 1), "wants C at base 5, where another motif has T"),
        (4, ["TATA@1"], (0, 1), "leave no base"),
        (0, [], (0, 1), r"--length \(0\)"),
    ],
)  # fmt: skip
def test_constraints_that_cannot_be_met(length, motifs, gc, message):
    with pytest.raises(ValueError, match=message):
        make_constraints(length, motifs, gc)


def test_the_ends_of_a_gc_range_can_be_had():
    """0.3 of 10 is 3 in spite of rounding; no GC and nothing but GC are ranges, too."""
    found = make_constraints(10, [], (0.3, 0.6))
    assert (found.min_gc, found.max_gc) == (3, 6)
    found = make_constraints(7, [], (0.3, 0.6))  # 2.1 to 4.2
    assert (found.min_gc, found.max_gc) == (3, 4)
    draw = np.random.default_rng(0)
    for low, high in ((0, 0), (1, 1), (0.3, 0.4)):
        constraints = make_constraints(10, [], (low, high))
        assert all(constraints.are_met_by(constraints.draw(draw)) for _ in range(50))


def test_bad_models_are_named(models, tmp_path: Path):
    with pytest.raises(ValueError, match="no weights for decoder.bias.*masked language model"):
        load(models["plain regressor"])
    with pytest.raises(ValueError, match="is not a Hugging Face model folder"):
        load(tmp_path)
    with pytest.raises(
        ValueError, match="--predictor .* no weights for classifier.*sequence classifier"
    ):
        Predictor(models["plain"], CPU, torch.float32, 2)
    with pytest.raises(ValueError, match=r"--label \(None\) must be one of LABEL_0, LABEL_1"):
        Predictor(models["rmt classifier"], CPU, torch.float32, 2)
    lm = load(models["plain"])
    sampler = Sampler(lm.tokenizer, make_constraints(900, [], (0, 1)), lm)
    with pytest.raises(ValueError, match="--model reads at most 38"):
        list(sampler.run(1, 1, 0))
    with pytest.raises(ValueError, match="--temperature"):
        Sampler(lm.tokenizer, make_constraints(9, [], (0, 1)), lm, temperature=0)


def test_command_line(models, tmp_path: Path):
    command = [
        sys.executable, "tools/design_sequence.py", "--model", str(models["plain"]), "--length",
        "40", "--motif", "TATAAA@11", "--num-sequences", "2", "--num-steps", "3", "--predictor",
        str(models["plain regressor"]), "--output", str(tmp_path / "new" / "o"),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    for code, text, options in (
        (2, "error: --motif (MKL@1)", ["--motif", "MKL@1"]),
        (0, "wrote 2 sequences", []),
    ):
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == code, done.stderr
        assert text in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert (tmp_path / "new").exists() == (code == 0)
    output = tmp_path / "new" / "o"
    with pytest.raises(ValueError, match="is there already"):
        check_output(output)
    assert sorted(path.name for path in output.parent.rglob("*")) == [
        "designs.fa", "designs.tsv", "o", "trajectory.png", "trajectory.tsv"
    ]  # fmt: skip
    fasta = (output / "designs.fa").read_text().split()
    table = [line.split("\t") for line in (output / "designs.tsv").read_text().splitlines()]
    assert [row[-1] for row in table[1:]] == [line for line in fasta if set(line) <= set("ACGT")]
    assert all(row[-1][10:16] == "TATAAA" for row in table[1:])
    assert len((output / "trajectory.tsv").read_text().splitlines()) == 1 + 2 * 4
    assert (output / "trajectory.png").read_bytes()[:4] == b"\x89PNG"
