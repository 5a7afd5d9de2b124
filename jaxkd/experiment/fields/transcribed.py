"""What networks and floors write of recordings: decoding, error rates, a teacher's likeliest texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd import data, metrics
from jaxkd.data.sounds import Sounds
from jaxkd.data.transcripts import Units, units_of
from jaxkd.experiment.baselines import logistic_regression
from jaxkd.experiment.fields.transcription import STACK, Corpus, Split, spectra
from jaxkd.experiment.trials import Scores

_CUTS = 10  # frames that a word has for a linear classifier
_STRENGTHS = (1e-3, 1e-2, 1e-1)  # inverse strengths of its regularisation that are tried


def error_rates(texts: Sequence[str], written: Sequence[str]) -> Scores:
    """Error rates of texts that a network wrote.

    Args:
      texts: True texts.
      written: What it wrote, one for each.

    Returns:
      "wer" and "cer", and the parts of the former: "substitutions", "deletions" and "insertions" by words.
    """
    words = metrics.word_edits(texts, written)
    parts = {name: getattr(words, name) / max(1, words.length) for name in words._fields[:3]}
    cer = metrics.character_edits(texts, written).value()
    return {"wer": float(words.value()), "cer": float(cer), **parts}


def transcribe(logits: np.ndarray, frames: np.ndarray, units: Units) -> list[str]:
    """Texts of the likeliest paths.

    Args:
      logits: [N, F, K].
      frames: Real frames [N].
      units: The units.

    Returns:
      N texts.
    """
    mask = np.arange(logits.shape[1]) < frames[:, None]
    labels, real = map(np.asarray, metrics.greedy_ctc(logits, mask))
    return [units.decode(row[m]) for row, m in zip(labels, real, strict=True)]


def best_texts(logits: np.ndarray, frames: np.ndarray, *, best: int) -> dict[str, np.ndarray]:
    """A teacher's likeliest texts of each recording, with their probabilities, for sequence-level distillation.

    Args:
      logits: [N, F, K].
      frames: Real frames [N].
      best: Number of texts n.

    Returns:
      `hypotheses` int32 [N, n, L], `hypothesis_mask` [N, n, L], and `hypothesis_weights` float32 [N, n], which sum to
      1 in each row.
    """
    log_p = np.asarray(jax.nn.log_softmax(logits))
    found = [metrics.beam_search(x[:n], beam=best, classes=3) for x, n in zip(log_p, frames, strict=True)]
    length = max(1, *(len(one.labels) for row in found for one in row))
    labels = np.zeros((len(found), best, length), np.int32)
    mask, weights = np.zeros(labels.shape, bool), np.zeros(labels.shape[:2], np.float32)
    for row, hypotheses in enumerate(found):
        for place, one in enumerate(hypotheses):
            labels[row, place, : len(one.labels)], mask[row, place, : len(one.labels)] = one.labels, True
            weights[row, place] = np.exp(one.log_probability - hypotheses[0].log_probability)
    weights /= weights.sum(axis=1, keepdims=True)
    return {"hypotheses": labels, "hypothesis_mask": mask, "hypothesis_weights": weights}


def constant_floor(corpus: Corpus) -> list[str]:
    """The most frequent training text, whatever is said.

    Args:
      corpus: The splits.

    Returns:
      A text for each test recording: of equally frequent ones, the one with the fewest errors on the training texts.
    """
    texts, counts = np.unique(corpus.train.texts, return_counts=True)
    likely = texts[counts == counts.max()]
    some = likely[: min(len(likely), 50)]
    rates = [error_rates(corpus.train.texts[:200], [str(text)] * len(corpus.train.texts[:200]))["wer"] for text in some]
    return [str(some[int(np.argmin(rates))])] * len(corpus.test.texts)


def cut_floor(corpus: Corpus) -> list[str]:
    """Logistic regression on single words' spectra, on equal cuts of each test string, whose count of words it is told.

    Args:
      corpus: Splits of strings that were joined from words.

    Returns:
      A text for each test string.
    """
    train, validation = (_words(part) for part in corpus.words)
    names = corpus.words[0].class_names
    model = logistic_regression(*train, validation, len(names), strengths=_STRENGTHS)
    log_mel, frames = spectra(corpus.test.sounds)
    found = []
    for x, n, text in zip(log_mel, frames, corpus.test.texts, strict=True):
        cuts = np.array_split(x[:n].reshape(STACK * int(n), -1), len(units_of(text, "words")))
        classes = model.logits(np.stack([_fixed(cut) for cut in cuts])).argmax(axis=-1)
        found.append(" ".join(names[c] for c in classes))
    return found


def _words(sounds: Sounds) -> tuple[np.ndarray, np.ndarray]:
    """Spectra of single words as vectors, and their classes."""
    log_mel, frames = spectra(sounds)
    flat = [_fixed(x[:n].reshape(STACK * int(n), -1)) for x, n in zip(log_mel, frames, strict=True)]
    return np.stack(flat), sounds.labels


def _fixed(spectrum: np.ndarray) -> np.ndarray:
    """Spectrum [F, M] as a vector of a fixed number of frames, less the mean of each band."""
    places = np.linspace(0, len(spectrum) - 1, _CUTS)
    left = np.minimum(places.astype(int), len(spectrum) - 1)
    part = (places - left)[:, None]
    x = (1 - part) * spectrum[left] + part * spectrum[np.minimum(left + 1, len(spectrum) - 1)]
    return (x - x.mean(axis=0)).ravel()


def scorer(predict: Callable[[Any], Callable[[data.Source], Any]], split: Split, units: Units) -> Callable[..., Scores]:
    """Function that scores the variables of a network on a split.

    Args:
      predict: As `jaxkd.experiment.evaluator.predictor` makes it.
      split: The split.
      units: The units.

    Returns:
      (variables) -> error rates.
    """
    frames = split.source.read(np.arange(len(split.texts)))["frames"]

    def score(variables: Any) -> Scores:
        _, logits = predict(variables)(split.source)
        return error_rates(split.texts, transcribe(logits, frames, units))

    return score
