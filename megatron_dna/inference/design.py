"""New sequences by Gibbs sampling from a masked language model, under constraints.

A step re-draws one token of each sequence: a token that is not all fixed is chosen at random and
masked, and what the model expects there is drawn among the tokens of as many bases that keep the
motifs and the range of GC content. Then the whole sequence is encoded anew, so that the model
always reads what the tokenizer makes of it, and borders of tokens move.

What is sampled: with tokens of one base (or k-mers) the steps are those of a dependency network
(Heckerman et al. 2000): its stationary distribution is that of the model's joint distribution if
the model's conditionals belong to one, and near it in some sense if they do not, as is the case for
masked language models. With BPE the choice of what is masked depends on the sequence, so that even
then it would be another distribution. Steering accepts a drawn token with min(1, exp(weight *
difference of scores)), a Metropolis step on that proposal, which tilts what is sampled towards
exp(weight * score) with the same reservation.

Source: Wang and Cho 2019 ("BERT has a Mouth, and It Must Speak"); Goyal et al. 2022 on why this is
not an exact sampler; differs: hard constraints, tokens of several bases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_dna.inference.constraints import Constraints, count_gc
from megatron_dna.tokenizer.bpe import DnaTokenizer

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Predict = Callable[[list[Ids], Sequence[int]], Floats]
"""ln probability [rows, vocab] of every token at one masked place of each row (ids without [CLS]
and [SEP]; the place counts from 0)."""
Score = Callable[[list[str]], Floats]
"""A number for each sequence; more is better."""


@dataclass(frozen=True)
class Step:
    """A sequence after a step."""

    sequence: str
    log_probability: float
    """Of the bases that were drawn, in nats a base, among all tokens of the vocabulary."""
    accepted: bool
    """False: the predictor's score refused them, and all is as before."""
    gc: float
    """Share of G and C."""
    score: float
    """The predictor's; NaN without one."""


class Sampler:
    """Chains that do not depend on each other, one a sequence."""

    def __init__(
        self,
        tokenizer: DnaTokenizer,
        constraints: Constraints,
        predict: Predict,
        temperature: float = 1.0,
        score: Score | None = None,
        score_weight: float = 1.0,
    ) -> None:
        """Prepare.

        Args:
            tokenizer: of the model.
            constraints: hold at every step.
            predict: the model.
            temperature: divides the logarithms that are drawn from; below 1 likelier tokens.
            score: steers, if given.
            score_weight: nats that one unit of the score is worth.

        Raises:
            ValueError: `temperature` is not above 0, or a base has no token.
        """
        if tokenizer.unk_id in tokenizer.encode("AACAGATCCGCTGGTTA"):
            raise ValueError("the model's tokenizer has no token for one of A, C, G and T")
        if not temperature > 0:
            raise ValueError(f"--temperature ({temperature}) must be above 0")
        self._tokenizer, self._constraints, self._predict = tokenizer, constraints, predict
        self._temperature, self._score, self._score_weight = temperature, score, score_weight
        self._choices = _choices(tokenizer)

    def run(self, num_sequences: int, num_steps: int, seed: int) -> Iterator[list[Step]]:
        """The state of all chains at the start, then after every step.

        A chain's random numbers depend on `seed` and its number only.
        """
        draws = [np.random.default_rng([seed, number]) for number in range(num_sequences)]
        sequences = [self._constraints.draw(draw) for draw in draws]
        scores = self._scores(sequences)
        yield [
            Step(sequence, np.nan, True, _gc(sequence), score)
            for sequence, score in zip(sequences, scores.tolist(), strict=True)
        ]
        for _ in range(num_steps):
            steps = self._step(sequences, scores, draws)
            sequences = [step.sequence for step in steps]
            scores = np.array([step.score for step in steps])
            yield steps

    def _scores(self, sequences: list[str]) -> Floats:
        if self._score is None:
            return np.full(len(sequences), np.nan)
        return self._score(sequences)

    def _step(
        self, sequences: list[str], scores: Floats, draws: list[np.random.Generator]
    ) -> list[Step]:
        rows = [self._tokenizer.encode(sequence).astype(np.int64) for sequence in sequences]
        places = [self._choose(ids, draw) for ids, draw in zip(rows, draws, strict=True)]
        log_p = self._predict(rows, places)
        proposals, nats = [], []
        for sequence, ids, place, row, draw in zip(
            sequences, rows, places, log_p, draws, strict=True
        ):
            start = int(self._tokenizer.token_lengths[ids[:place]].sum())
            end = start + int(self._tokenizer.token_lengths[ids[place]])
            token = self._draw(sequence, start, end, row, draw)
            proposals.append(sequence[:start] + self._tokenizer.decode([token]) + sequence[end:])
            nats.append(float(row[token]) / (end - start))
        new_scores = self._scores(proposals)
        steps = []
        for i, draw in enumerate(draws):
            gain = self._score_weight * (new_scores[i] - scores[i])
            accepted = self._score is None or bool(np.log(draw.random()) < gain)
            sequence, score = (
                (proposals[i], new_scores[i]) if accepted else (sequences[i], scores[i])
            )
            steps.append(Step(sequence, nats[i], accepted, _gc(sequence), float(score)))
        return steps

    def _choose(self, ids: Ids, draw: np.random.Generator) -> int:
        """A token that is not all fixed."""
        ends = np.cumsum(self._tokenizer.token_lengths[ids], dtype=np.int64)
        free = np.concatenate(([0], np.cumsum(self._constraints.fixed == 0)))
        starts = np.concatenate(([0], ends[:-1]))
        return int(draw.choice(np.flatnonzero(free[ends] > free[starts])))

    def _draw(
        self, sequence: str, start: int, end: int, log_p: Floats, draw: np.random.Generator
    ) -> int:
        """A token for the bases [start, end) that keeps the constraints."""
        ids, letters, num_gc = self._choices[end - start]
        fixed = self._constraints.fixed[start:end]
        rest = sequence[:start] + sequence[end:]
        gc = num_gc + count_gc(np.frombuffer(rest.encode(), np.uint8))
        allowed = ((fixed == 0) | (letters == fixed)).all(1)
        allowed &= (gc >= self._constraints.min_gc) & (gc <= self._constraints.max_gc)
        ids = ids[allowed]
        weights = log_p[ids] / self._temperature
        weights = np.exp(weights - weights.max())
        return int(draw.choice(ids, p=weights / weights.sum()))


def _choices(
    tokenizer: DnaTokenizer,
) -> dict[int, tuple[Ids, npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
    """By number of bases: tokens of A, C, G, T, their letters [tokens, bases], their G and C."""
    by_length: dict[int, list[int]] = {}
    for i, length in enumerate(tokenizer.token_lengths.tolist()):
        if length and not set(tokenizer.decode([i])) - set("ACGT"):
            by_length.setdefault(length, []).append(i)
    found = {}
    for length, ids in by_length.items():
        text = "".join(tokenizer.decode([i]) for i in ids).encode()
        letters = np.frombuffer(text, np.uint8).reshape(len(ids), length)
        found[length] = (np.array(ids), letters, np.array([count_gc(row) for row in letters]))
    return found


def _gc(sequence: str) -> float:
    return count_gc(np.frombuffer(sequence.encode(), np.uint8)) / len(sequence)
