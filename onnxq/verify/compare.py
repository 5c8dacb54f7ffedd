"""Run a float model and its quantized form on the same samples and compare what they give."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.errors import VerificationError
from onnxq.graph.reading.output_facts import OutputFact, facts_of_file
from onnxq.runtime.session import Session, open_session
from onnxq.verify import loss as scale
from onnxq.verify.fidelity import Fidelity, Metric, OutputComparison
from onnxq.verify.hits import Hits
from onnxq.verify.kinds.output_kinds import is_real
from onnxq.verify.output_judges import OutputJudges
from onnxq.verify.reference import Reference
from onnxq.verify.still import held_still, note
from onnxq.verify.tokens import Tokens

_CLASS_RANKS = (2, 3)


@dataclass(frozen=True)
class Comparison:
    """A quantized model against its float model.

    Attributes:
        outputs: by the float model's output name; outputs that are no tensors are left out.
        samples: feeds run.
        sqnr_db: of the worst real-valued output, in dB; None where there is none.
        top1_agreement: share of decisions of ``class_output`` that stay; None where there is none.
        class_output: the first output that holds scores of classes, of items or of positions.
        accuracy: ``{"float": …, "quantized": …}``, shares of labels that the largest element of ``class_output``
            hits (of a language model: over tokens); None without labels.
        perplexity: ``{"float": …, "quantized": …}`` of the token ids in the data, or of labels for tokens; None where
            no output (N, S, tokens) predicts them.
        token_agreement: share of these tokens, padding left out, for which both models find the same one most likely.
        token_divergence: mean Kullback–Leibler divergence of the quantized model's distribution over tokens from the
            float model's, in nats; unlike perplexity it cannot fall by chance.
        metric: the figure that was asked for by name; None where none was.
        warnings: what could not be compared.
        possible_agreement: the same as ``top1_agreement``, of the first output that may hold scores of classes although
            neither graph nor data show it; for those who say that it does.
        loss: expected share of decisions that change, of the worst output that is no state (`onnxq.verify.loss`); None
            where nothing could be compared.
        loss_error: the standard error that is in ``loss``.
        free_running_loss: of a model with states: its loss at the end of the samples, at most 64, where it goes on from
            its own states rather than from the float model's; None where no state is carried.
    """

    outputs: dict[str, OutputComparison]
    samples: int
    sqnr_db: float | None
    top1_agreement: float | None
    class_output: str | None
    accuracy: dict[str, float] | None = None
    perplexity: dict[str, float] | None = None
    token_agreement: float | None = None
    token_divergence: float | None = None
    metric: Metric | None = None
    warnings: list[str] = field(default_factory=list)
    loss: float | None = None
    possible_agreement: float | None = None
    free_running_loss: float | None = None
    loss_error: float = 0.0

    @property
    def judged(self) -> dict[str, scale.Judged | None]:
        """The measure of each output's kind."""
        return {name: output.judged for name, output in self.outputs.items()}

    def outside(self, budget: float = scale.BUDGET) -> str:
        """Why the quantized model is outside an accuracy budget; empty where it is inside.

        Args:
            budget: the largest loss, a share of decisions.
        """
        if not self.finite:
            return "an output is NaN or infinite where float is finite"
        return scale.in_words(self.judged, budget)

    @property
    def finite(self) -> bool:
        """No output holds NaN or an infinity where the float model's is finite."""
        return all(output.finite for output in self.outputs.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain Python values; SQNR may be infinite."""
        outputs = {name: output.to_dict() for name, output in self.outputs.items()}
        return dataclasses.asdict(dataclasses.replace(self, outputs={})) | {"outputs": outputs}

    def summary(self) -> str:
        """Everything as text, a line for each output."""
        lines = [f"{self.samples} samples"]
        for name, output in self.outputs.items():
            facts = []
            if (judged := output.judged) is not None:
                facts.append(f"{judged.kind}: {scale.phrase(judged)}, loss {scale.share(judged.loss)}")
            if output.sqnr_db is not None:
                facts.append("equal" if output.sqnr_db == math.inf else f"SQNR {output.sqnr_db:.1f} dB")
                facts.append(f"cosine {output.cosine:.6f}")
                facts.append(f"largest error {output.max_abs_error:.4g}")
            if output.top1_agreement is not None:
                facts.append(f"top-1 agreement {output.top1_agreement:.1%}")
            if output.agreement is not None:
                facts.append(f"equal elements {output.agreement:.1%}")
            if not output.finite:
                facts.append(f"{output.nonfinite_quantized} elements are NaN or infinite")
            lines.append(f"{name}: {', '.join(facts) or 'not compared'}")
        if self.accuracy is not None:
            lines.append(f"accuracy: {self.accuracy['float']:.2%} float, {self.accuracy['quantized']:.2%} quantized")
        if self.perplexity is not None:
            found = self.perplexity
            lines.append(f"perplexity: {found['float']:.4g} float, {found['quantized']:.4g} quantized")
        if self.token_agreement is not None:
            lines.append(f"same most likely token: {self.token_agreement:.2%}")
        if self.free_running_loss is not None:
            lines.append(f"on its own states: loss {scale.share(self.free_running_loss)} at the end")
        return "\n".join(lines)


def compare(
    float_model: bytes | Path | Session,
    quantized_model: bytes | Path | Session,
    feeds: Iterable[Feed],
    *,
    optimize: bool = True,
    labels: Array | None = None,
    threads: int | None = None,
    facts: Mapping[str, OutputFact] | None = None,
) -> Comparison:
    """Run both models on every feed and compare their outputs, one feed in memory at a time.

    Args:
        float_model: the reference; contents of a model file, its path, or a session that is open already.
        quantized_model: the model in question; its outputs are matched by name, else by position.
        feeds: arrays by input name.
        optimize: with all graph optimizations of the runtime, or with none.
        labels: (items of all batches,) class indices, or (items, classes) scores; for `Comparison.accuracy`. Or
            (items, positions) token ids, which `onnxq.verify.tokens` describes.
        threads: threads an operator may use; None lets the runtime choose.
        facts: what the float model says of its outputs (`onnxq.graph.reading.output_facts`); None reads the graph, and
            judges by the outputs alone where the float model is a session.

    Raises:
        ModelError: a model cannot be loaded or run.
        VerificationError: the outputs cannot be matched, or there is not one feed.
    """
    return compare_all(
        float_model, [quantized_model], feeds, optimize=optimize, labels=labels, threads=threads, facts=facts
    )[0]


@dataclass(frozen=True)
class Patience:
    """When a model need not be compared any further.

    Attributes:
        seconds: that its runs may take.
        enough: whether the worst output on so many samples settles it; asked after 2, 4, 8 … samples.
        unseen: samples that made no ranges, which come first; None where that is none of them or all.
    """

    seconds: float = math.inf
    enough: Callable[[scale.Judged, int], bool] | None = None
    unseen: int | None = None


def compare_all(
    float_model: bytes | Path | Session | Reference,
    quantized_models: Sequence[bytes | Path | Session],
    feeds: Iterable[Feed],
    *,
    optimize: bool = True,
    labels: Array | None = None,
    threads: int | None = None,
    patience: Sequence[Patience] | None = None,
    facts: Mapping[str, OutputFact] | None,
) -> list[Comparison]:
    """Compare several models with one float model, which runs once for each feed; otherwise as `compare`.

    Args:
        float_model: as for `compare`; a reference remembers what it gave for feeds that are the same objects.
        quantized_models: as for `compare`.
        feeds: as for `compare`.
        optimize: as for `compare`.
        labels: as for `compare`.
        threads: as for `compare`.
        patience: with each model; None has no end.
        facts: as for `compare`; named by each caller, for losses by other facts are no measure of one another.
    """
    if facts is None:
        facts = {} if isinstance(float_model, Session | Reference) else facts_of_file(float_model)
    if isinstance(float_model, Reference):
        reference = float_model
    else:
        reference = Reference(_opened(float_model, "float model", optimize, threads), most_bytes=0)
    limits = [Patience()] * len(quantized_models) if patience is None else patience
    trials = [
        _Trial(reference, held_still(_opened(model, "quantized model", optimize, threads))[0], labels, limit, facts)
        for model, limit in zip(quantized_models, limits, strict=True)
    ]
    samples = 0
    for feed in feeds:
        samples += 1
        if not any(trial.waits for trial in trials):
            break
        expected = reference.run(feed)
        for trial in trials:
            trial.add(feed, expected)
    if samples == 0:
        raise VerificationError("compare: there is not one sample; pass at least one feed")
    found = [trial.result() for trial in trials]
    if reference.drawing:
        for comparison in found:
            comparison.warnings.append(note(reference.drawing))
    return found


class _Trial:
    """One quantized model on its way through the feeds."""

    def __init__(
        self,
        reference: Reference,
        actual: Session,
        labels: Array | None,
        patience: Patience,
        facts: Mapping[str, OutputFact],
    ) -> None:
        self._session = actual
        self._left = patience.seconds
        self._patience = patience
        self._samples = 0
        self._pairs = matched_outputs(reference.session, actual)
        self._states = {name: Fidelity() for name, _ in self._pairs}
        self._judges = OutputJudges(facts, labelled=labels is not None)
        self._unusual = 0
        self._labels = None if labels is None else np.asarray(labels)
        self._hits = None if self._labels is None else Hits(self._labels)
        self._tokens: dict[str, Tokens] = {}
        self._items = 0
        self._chosen: str | None = None

    def add(self, feed: Feed, outputs: Mapping[str, Any]) -> None:
        """Run the model on a feed and compare with what the float model gave."""
        if not self.waits:
            return
        started = time.perf_counter()
        found = self._session.run(feed, [name for _, name in self._pairs])
        self._left -= time.perf_counter() - started
        self._samples += 1
        pairs = {
            name: (outputs[name], got)
            for (name, _), got in zip(self._pairs, found, strict=True)
            if isinstance(outputs[name], np.ndarray) and isinstance(got, np.ndarray)
        }
        self._unusual += any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in feed.values())
        self._judges.add(
            feed,
            {name: expected for name, (expected, _) in pairs.items()},
            {name: got for name, (_, got) in pairs.items()},
        )
        if self._chosen is None:
            self._chosen = self._judges.may_be_classes or next(
                (name for name, (expected, _) in pairs.items() if _looks_like_classes(expected)), None
            )
        for name, (expected, got) in pairs.items():
            self._states[name].update(expected, got)
            if name == self._chosen and self._hits is not None:
                self._hits.add(expected, got)
            if self._states[name].is_real and expected.ndim == 3:
                tokens = self._tokens.setdefault(name, Tokens(self._token_labels is not None))
                tokens.add(feed, self._labels_of(expected.shape[0]), expected, got)
        self._items += _items(feed)
        if self._samples == self._patience.unseen:
            self._judges.others_follow()
        enough = self._patience.enough
        if enough is not None and self._samples > 1 and self._samples & (self._samples - 1) == 0:
            worst = scale.worst_output(self._judges.judged())
            if worst is not None and enough(worst, self._samples):
                self._left = 0.0

    @property
    def waits(self) -> bool:
        """Further samples are wanted."""
        return self._left > 0

    @property
    def _token_labels(self) -> Array | None:
        """The labels, if they are for tokens."""
        labels = self._labels
        return labels if labels is not None and labels.ndim == 2 and labels.dtype.kind in "iu" else None

    def _labels_of(self, items: int) -> Array | None:
        labels = self._token_labels
        return None if labels is None else labels[self._items : self._items + items]

    def result(self) -> Comparison:
        """The figures over all feeds."""
        samples = self._samples
        judged, agreements = self._judges.judged(), self._judges.agreements()
        outputs = {
            name: state.result().with_judgement(judged.get(name), agreements.get(name))
            for name, state in self._states.items()
            if state.samples or state.mismatched
        }
        warnings = [
            f"output '{name}': shapes or types differ between the models on {output.mismatched} of {samples} samples, "
            "which are left out"
            for name, output in outputs.items()
            if output.mismatched
        ]
        warnings += _not_finite(self._unusual, outputs)
        hits, chosen = self._hits, self._chosen
        tokens = next((found for found in self._tokens.values() if found.known), None)
        if tokens is not None and self._token_labels is not None:
            hits = None
        warnings += hits.doubts(chosen is not None) if hits is not None else []
        accuracy = hits.accuracy if hits is not None and chosen is not None else None
        if tokens is not None and accuracy is None:
            accuracy = tokens.accuracy
        worst = scale.worst_output(judged)
        ratios = [output.sqnr_db for output in outputs.values() if output.sqnr_db is not None]
        classes = next((name for name, share in agreements.items() if share is not None), None)
        return Comparison(
            outputs=outputs,
            samples=samples,
            sqnr_db=min(ratios, default=None),
            top1_agreement=None if classes is None else agreements[classes],
            class_output=classes,
            accuracy=accuracy,
            perplexity=tokens.perplexity if tokens is not None else None,
            token_agreement=tokens.agreement if tokens is not None else None,
            token_divergence=tokens.divergence if tokens is not None else None,
            warnings=warnings,
            loss=None if worst is None else worst.loss,
            loss_error=0.0 if worst is None else worst.loss_error,
            possible_agreement=self._judges.possible_agreement if classes is None else agreements[classes],
        )


def _not_finite(samples: int, outputs: Mapping[str, OutputComparison]) -> list[str]:
    """What becomes of NaN and infinities: integer kernels make ordinary numbers of them."""
    lost = {name: output.nonfinite_lost for name, output in outputs.items() if output.nonfinite_lost}
    said = [
        f"output '{name}': {count} elements that are NaN or infinite in the float model are ordinary numbers in the "
        "quantized one, whose integers cannot hold them; NaN no longer shows that an input was bad"
        for name, count in lost.items()
    ]
    if samples and not lost:
        said.append(
            f"samples: {samples} hold NaN or infinite inputs; integer layers turn those into ordinary numbers, so that "
            "outputs need not show that an input was bad"
        )
    return said


def _opened(model: bytes | Path | Session, name: str, optimize: bool, threads: int | None) -> Session:
    if isinstance(model, Session):
        return model
    label = str(model) if isinstance(model, Path) else name
    return open_session(model, optimize=optimize, threads=threads, label=label)


def matched_outputs(reference: Session, actual: Session) -> list[tuple[str, str]]:
    """Outputs of both models that belong together: by name, else by position.

    Raises:
        VerificationError: the two are no pair.
    """
    if set(reference.output_names) <= set(actual.output_names):
        return [(name, name) for name in reference.output_names]
    if len(reference.output_names) != len(actual.output_names):
        raise VerificationError(
            f"{actual.label}: its outputs {actual.output_names} are not those of {reference.label}, "
            f"{reference.output_names}; compare a model with its own quantized form"
        )
    return list(zip(reference.output_names, actual.output_names, strict=True))


def _items(feed: Feed) -> int:
    """Items of a feed: the length of the first axis of its first array that has one."""
    return next((array.shape[0] for array in feed.values() if array.ndim), 1)


def _looks_like_classes(output: Array) -> bool:
    return is_real(output) and output.ndim in _CLASS_RANKS and output.shape[-1] >= 2
