"""What an output is taken for, and that its measure sees what its user would."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from onnxq.graph.reading.output_facts import LINEAR, MIXED, RELU, SIGMOID, SOFTMAX, UNKNOWN, OutputFact
from onnxq.verify import loss
from onnxq.verify.kinds.output_kinds import normalized_axis
from onnxq.verify.loss import Judged
from onnxq.verify.output_judges import OutputJudges

Array = np.ndarray[Any, Any]
FEED = {"x": np.zeros((1, 3, 64, 64), np.float32)}


def softmax(logits: Array, axis: int = -1) -> Array:
    powers = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True), np.float32)


def sigmoid(logits: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


def judged(fact: OutputFact, *pairs: tuple[Array, Array], feed: Any = FEED, labelled: bool = False) -> OutputJudges:
    judges = OutputJudges({"y": fact}, labelled=labelled)
    for expected, got in pairs:
        judges.add(feed, {"y": expected.astype(np.float32)}, {"y": got.astype(np.float32)})
    return judges


def of(fact: OutputFact, *pairs: tuple[Array, Array], feed: Any = FEED, labelled: bool = False) -> Judged:
    found = judged(fact, *pairs, feed=feed, labelled=labelled).judged()["y"]
    assert found is not None
    return found


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(0)


# Kinds.


KINDS: list[tuple[OutputFact, Any, str]] = [
    (OutputFact(SOFTMAX), lambda g: softmax(g.normal(0, 4, (8, 5))), loss.CLASSES),
    (OutputFact(UNKNOWN), lambda g: softmax(g.normal(0, 4, (8, 5))), loss.CLASSES),
    (OutputFact(LINEAR, -1), lambda g: g.normal(0, 4, (8, 5)), loss.CLASSES),
    (OutputFact(RELU), lambda g: g.normal(0, 4, (8, 5)), loss.CLASSES),
    (OutputFact(SOFTMAX), lambda g: softmax(g.normal(0, 4, (1, 30, 5))), loss.POSITIONS),
    (OutputFact(SOFTMAX), lambda g: softmax(g.normal(0, 4, (1, 6, 9, 9)), 1), loss.POSITIONS),
    (OutputFact(LINEAR, 1), lambda g: g.normal(0, 4, (1, 6, 9, 9)), loss.POSITIONS),
    (OutputFact(SIGMOID), lambda g: sigmoid(g.normal(0, 4, (1, 30, 5))), loss.PROBABILITIES),
    (OutputFact(UNKNOWN), lambda g: sigmoid(g.normal(0, 4, (1, 1))), loss.PROBABILITIES),
    (OutputFact(LINEAR, -1), lambda g: g.normal(0, 4, (8, 1)), loss.VALUES),
    (OutputFact(LINEAR, -1, like_input=True), lambda g: g.normal(0, 4, (8, 5)), loss.VALUES),
    (OutputFact(LINEAR), lambda g: g.normal(0, 4, (1, 100, 4)), loss.VALUES),
    (OutputFact(UNKNOWN), lambda g: g.normal(0, 4, (5,)), loss.VALUES),
    (OutputFact(LINEAR), lambda g: g.normal(0, 1, (1, 1, 16000)), loss.SIGNAL),
    (OutputFact(SIGMOID), lambda g: sigmoid(g.normal(0, 1, (1, 3, 64, 64))), loss.SIGNAL),
    (OutputFact(embedding=True), lambda g: g.normal(0, 1, (8, 16)), loss.EMBEDDING),
    (OutputFact(SOFTMAX, state_of="h"), lambda g: g.normal(0, 1, (2, 1, 16)), loss.STATE),
    (
        OutputFact(MIXED),
        lambda g: np.concatenate([g.uniform(0, 64, (1, 4, 50)), sigmoid(g.normal(-4, 2, (1, 3, 50)))], axis=1),
        loss.DETECTION,
    ),
]


@pytest.mark.parametrize(("fact", "make", "kind"), KINDS)
def test_kinds(generator: np.random.Generator, fact: OutputFact, make: Any, kind: str) -> None:
    output = make(generator)
    found = of(fact, (output, output))
    assert (found.kind, found.loss) == (kind, 0.0)


def test_integers_are_counted_and_a_common_one_is_a_background() -> None:
    judges = OutputJudges({})
    before = np.zeros((1, 100), np.int64)
    before[0, :10] = 7
    after = before.copy()
    after[0, :5] = 0
    judges.add(FEED, {"y": before}, {"y": after})
    found = judges.judged()["y"]
    assert found is not None
    assert (found.kind, found.value) == (loss.ELEMENTS, pytest.approx(5 / 15))
    assert found.loss > loss.BUDGET


def test_the_axis_that_is_normalized() -> None:
    scores = softmax(np.random.default_rng(0).normal(0, 1, (2, 5, 7)), 1)
    assert normalized_axis(scores) == 1
    assert normalized_axis(np.ones((3, 1), np.float32)) is None
    assert normalized_axis(-scores) is None
    assert normalized_axis(np.zeros((0, 3), np.float32)) is None


# Agreement is there only where something is decided.


def test_one_element_a_state_boxes_and_values_have_no_agreement(generator: np.random.Generator) -> None:
    alike = OutputFact(LINEAR, -1)
    for fact, shape in [
        (OutputFact(SIGMOID), (4, 1)),
        (OutputFact(LINEAR, state_of="h"), (2, 4, 16)),
        (OutputFact(LINEAR), (1, 64, 4)),
        (OutputFact(LINEAR, like_input=True), (4, 16)),
    ]:
        output = sigmoid(generator.normal(0, 1, shape))
        assert judged(fact, (output, output)).agreements()["y"] is None
    always = generator.normal(0, 0.1, (20, 4)) + np.array([5, 0, 0, 0])
    assert judged(alike, (always, always)).agreements()["y"] is None
    assert judged(alike, (always, always), labelled=True).agreements()["y"] == 1.0


def test_scores_beside_probabilities_are_no_classes(generator: np.random.Generator) -> None:
    scores = softmax(generator.normal(0, 4, (20, 2)))
    corners = generator.normal(0, 1, (20, 4))
    judges = OutputJudges({"s": OutputFact(SOFTMAX), "b": OutputFact(LINEAR, -1)})
    judges.add({"x": np.zeros((20, 3), np.float32)}, {"s": scores, "b": corners}, {"s": scores, "b": corners})
    assert judges.agreements() == {"s": 1.0, "b": None}


# What a change costs.


def test_a_class_that_float_was_sure_of_costs_more(generator: np.random.Generator) -> None:
    logits = generator.normal(0, 1, (100, 10))
    sure = logits.copy()
    sure[np.arange(100), generator.integers(0, 10, 100)] += 12.0
    tied = sure.copy()
    tied[:5] = logits[:5]
    best = logits[:5].argmax(axis=1)
    tied[np.arange(5), (best + 1) % 10] = tied[np.arange(5), best] - 1e-3
    losses = []
    for scores, least in ((sure, -5.0), (tied, None)):
        changed = scores.copy()
        rows = np.arange(5)
        chosen = scores[rows].argmax(axis=1)
        changed[rows, chosen] = changed[rows, chosen] - 0.01 if least is None else least
        found = of(OutputFact(LINEAR, -1), (softmax(scores), softmax(changed)))
        assert found.value == pytest.approx(0.05)
        losses.append(found.loss)
    assert losses[0] > 2 * loss.BUDGET
    assert losses[1] < loss.BUDGET


def test_the_same_noise_is_found_from_few_samples_as_from_many(generator: np.random.Generator) -> None:
    def found(count: int) -> float:
        logits = 4 * generator.normal(0, 1, (count, 10))
        return of(OutputFact(SOFTMAX), (softmax(logits), softmax(logits + generator.normal(0, 1.0, logits.shape)))).loss

    few = np.mean([found(24) for _ in range(40)])
    assert few == pytest.approx(found(20000), rel=0.4)


def test_few_found_among_many_anchors_are_what_counts(generator: np.random.Generator) -> None:
    logits = np.full((1, 8000, 2), -7.0) + generator.normal(0, 0.5, (1, 8000, 2))
    logits[0, :40, 0] = 4.0
    missed = logits.copy()
    missed[0, :4, 0] = -4.0
    found = of(OutputFact(SIGMOID), (sigmoid(logits), sigmoid(missed)))
    assert found.value == pytest.approx(4 / 76, rel=0.01)
    assert found.loss > loss.BUDGET


def test_boxes_count_where_something_was_found(generator: np.random.Generator) -> None:
    scores = sigmoid(np.full((1, 500, 1), -7.0))
    scores[0, :20] = 0.9
    boxes = generator.normal(0, 1, (1, 500, 4))
    for rows, inside in ((slice(20, 500), True), (slice(0, 20), False)):
        moved = boxes.copy()
        moved[0, rows] += generator.normal(0, 0.3, moved[0, rows].shape)
        judges = OutputJudges({"s": OutputFact(SIGMOID), "b": OutputFact(LINEAR)})
        judges.add(FEED, {"s": scores, "b": boxes}, {"s": scores, "b": moved})
        assert loss.inside_budget(loss.worst(judges.judged())) is inside


def scores_of(text: list[int], symbols: int, generator: np.random.Generator) -> Array:
    logits = generator.normal(0, 0.5, (1, len(text), symbols))
    logits[0, np.arange(len(text)), text] += 12.0
    return logits


def test_texts_are_judged_as_texts(generator: np.random.Generator) -> None:
    fact, count = OutputFact(LINEAR, -1), 50
    pairs = []
    for index in range(count):
        text = [0] * 40
        text[5:35:6] = generator.integers(1, 500, 5).tolist()
        before, after = (scores_of(text, 500, generator) for _ in range(2))
        if index < 6:  # one symbol of thirty of such a sequence, and 199 of 200 positions stay as they are
            after[0, 5, text[5]] -= 20.0
        pairs.append((before, after))
    found = of(fact, *pairs)
    assert (found.kind, found.value) == (loss.TEXT, pytest.approx(6 / count))
    assert found.loss > 5 * loss.BUDGET


def test_a_boundary_that_moves_changes_no_text(generator: np.random.Generator) -> None:
    before = scores_of([0, 5, 5, 0, 0, 9, 0, 0, 0, 7, 7, 0], 30, generator)
    after = scores_of([0, 0, 5, 0, 9, 9, 0, 0, 0, 7, 0, 0], 30, generator)
    found = of(OutputFact(LINEAR, -1), *[(before, after)] * 6)
    assert (found.kind, found.value) == (loss.TEXT, 0.0)


def test_thirty_decibels_are_one_percent() -> None:
    assert loss.by_noise(10 ** (-30 / 20)) == pytest.approx(0.01, abs=1e-4)
    assert (loss.by_noise(0.0), loss.by_noise(math.inf), loss.by_similarity(math.inf)) == (0.0, 0.5, 0.5)


def test_values_lose_what_numbers_on_either_side_of_their_median_do(generator: np.random.Generator) -> None:
    before = 40 + 3 * generator.normal(0, 1, (4000, 1))
    after = before + generator.normal(0, 0.6, before.shape)
    found = of(OutputFact(LINEAR, -1), (before, after))
    assert found.value == pytest.approx(0.2, rel=0.05)
    assert found.loss == pytest.approx(np.mean((before > 40) != (after > 40)), rel=0.25)


def test_values_far_from_zero_are_judged_by_how_they_differ(generator: np.random.Generator) -> None:
    places = np.array([48.0, 8.0]) + generator.normal(0, 0.01, (50, 2))
    assert of(OutputFact(LINEAR, like_input=True), (places, places + 0.01)).loss > 0.1


def test_embeddings_keep_their_neighbours(generator: np.random.Generator) -> None:
    groups = generator.normal(0, 1, (8, 128))
    vectors = groups[generator.integers(0, 8, 60)] + 0.5 * generator.normal(0, 1, (60, 128))
    near = vectors + 0.15 * generator.normal(0, 1, vectors.shape)
    fact = OutputFact(embedding=True)
    assert of(fact, (vectors, near)).loss < loss.BUDGET
    assert of(fact, (vectors, generator.normal(0, 1, vectors.shape))).loss > 10 * loss.BUDGET
    one = of(fact, (vectors[:1], near[:1]))
    assert (one.measure, one.loss) == ("cosine", pytest.approx(math.acos(one.value) / math.pi))


def test_an_imitation_is_judged_by_how_far_it_misses(generator: np.random.Generator) -> None:
    given = 10 * generator.normal(0, 1, (200, 40))
    misses = generator.normal(0, 1, given.shape) * (1 + 0.1 * generator.normal(0, 1, (200, 1)))
    made = given + misses
    rough = made + 0.1 * misses * generator.choice([-1, 1], (200, 1))
    fact, feed = OutputFact(LINEAR, like_input=True), {"x": given.astype(np.float32)}
    found = of(fact, (made, rough), feed=feed)
    assert (found.kind, found.measure) == (loss.VALUES, "relative error of what is missed")
    assert found.loss > loss.BUDGET
    assert of(fact, (made, rough)).loss < loss.BUDGET
    assert of(fact, (misses, 1.01 * misses), feed=feed).measure == "relative error"


# The whole.


def test_states_do_not_count_unless_there_is_nothing_else() -> None:
    state, answer = (
        Judged(loss.STATE, "relative error", 1.0, 0.25),
        Judged(loss.CLASSES, "changed decisions", 0.0, 0.001),
    )
    assert loss.worst({"s": state, "y": answer}) == 0.001
    assert loss.worst({"s": state}) == 0.25
    assert loss.worst({"s": None}) is None
    assert not loss.inside_budget(None)
    assert loss.in_words({"s": state, "y": answer}) == ""
    said = loss.in_words({"y": Judged(loss.VALUES, "relative error", 0.2, 0.0628)})
    assert said == "output 'y' (values): 20.0 % relative error, a loss of 6.3 %; the budget is 1.0 %"


@pytest.mark.parametrize("fact", [OutputFact(SOFTMAX), OutputFact(SIGMOID), OutputFact(LINEAR, -1)])
@pytest.mark.parametrize("shape", [(1, 3), (4, 6), (1, 20, 6), (0, 3)])
def test_nan_in_the_quantized_model_alone_is_the_worst(fact: OutputFact, shape: tuple[int, ...]) -> None:
    output = sigmoid(np.random.default_rng(0).normal(0, 1, shape))
    broken = output.copy()
    broken[:1] = np.nan
    found = of(fact, (output, broken))
    assert found.loss == (1.0 if output.size else 0.0)
    both = judged(fact, (broken, broken)).judged()["y"]
    silent = bool(output.size) and not np.isfinite(broken).any()
    assert both is None if silent else both is not None and both.loss == 0.0


def test_samples_without_a_finite_number_are_left_out() -> None:
    """They neither decide what an output holds nor count as agreement."""
    scores = sigmoid(np.random.default_rng(0).normal(0, 1, (4, 6)))
    nothing = np.full_like(scores, np.nan)
    plain = of(OutputFact(LINEAR, -1), (scores, scores + 0.01))
    assert of(OutputFact(LINEAR, -1), (nothing, scores), (scores, scores + 0.01), (nothing, nothing)) == plain


def test_lists_of_other_lengths_count_by_what_is_missing() -> None:
    before, after = np.zeros((10, 6), np.float32), np.zeros((9, 6), np.float32)
    judges = OutputJudges({})
    judges.add(FEED, {"y": before}, {"y": after})
    found = judges.judged()["y"]
    assert found is not None
    assert found.loss == pytest.approx(0.1)


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize(("fact", "make"), [row[:2] for row in KINDS])
def test_outputs_that_all_come_out_longer_are_judged_by_that(
    generator: np.random.Generator, fact: OutputFact, make: Any, axis: int
) -> None:
    """A decoder that stops later, in every sample: there is nothing of one shape to compare."""
    output = make(generator)
    longer = np.concatenate([output, output], axis)
    found = of(fact, (output, longer), (output, longer))
    assert found.measure == "difference in length"
    assert found.loss == found.value == pytest.approx(0.5)


SHAPES = [
    (),
    (0,),
    (1,),
    (7,),
    (0, 3),
    (3, 0),
    (1, 1),
    (4, 4),
    (5, 30),
    (20, 1, 30),
    (1, 0, 6),
    (1, 6, 20),
    (1, 3, 8, 8),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.bool_, np.str_])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_output_is_judged(shape: tuple[int, ...], dtype: type) -> None:
    """Empty ones, single numbers and extremes: a loss in 0…1, and 0 for what is equal; none where nothing is finite."""
    noise = np.random.default_rng(0).normal(0, 3, shape)
    extremes = np.full(shape, 6e4 if dtype == np.float16 else 3e38) if np.dtype(dtype).kind == "f" else noise
    facts = [OutputFact(activation) for activation in (SOFTMAX, SIGMOID, LINEAR, MIXED, UNKNOWN)]
    facts += [OutputFact(embedding=True), OutputFact(state_of="h"), OutputFact(LINEAR, like_input=True)]
    finite = np.dtype(dtype).kind != "f"
    for made in (
        noise,
        np.zeros(shape),
        extremes,
        *([] if finite else [np.full(shape, np.nan), np.full(shape, np.inf)]),
    ):
        output = np.asarray(made).astype(dtype)
        for fact in facts:
            for other in (output, np.asarray(np.abs(noise)).astype(dtype), output[:0] if output.ndim else output):
                judges = OutputJudges({"y": fact})
                for _ in range(2):
                    judges.add(FEED, {"y": output}, {"y": other})
                found = judges.judged()["y"]
                if output.size and np.dtype(dtype).kind == "f" and not np.isfinite(output).any():
                    assert found is None
                    continue
                assert found is not None
                assert 0.0 <= found.loss <= 1.0
                assert not math.isnan(found.value)
                assert other is not output or found.loss == 0.0


# What few samples leave open.


@pytest.mark.parametrize("fact", [OutputFact(), OutputFact(embedding=True)], ids=["values", "embedding"])
def test_errors_that_differ_between_samples_are_less_certain(fact: OutputFact, generator: np.random.Generator) -> None:
    outputs = generator.normal(0, 1, (16, 1, 64))
    noise = 0.02 * generator.normal(0, 1, outputs.shape)
    uneven = noise * np.where(np.arange(16) == 3, 4.0, 0.0)[:, None, None]
    uneven *= np.sqrt((noise**2).mean() / (uneven**2).mean())
    even, bunched = (
        of(fact, *[(before, before + error) for before, error in zip(outputs, errors, strict=True)])
        for errors in (noise, uneven)
    )
    errors = [1 - found.value if fact.embedding else found.value for found in (even, bunched)]
    assert bunched.loss / errors[1] > 1.15 * even.loss / errors[0]


@pytest.mark.parametrize(
    ("fact", "make"),
    [
        (OutputFact(), lambda g: g.normal(0, 1, (1, 64))),
        (OutputFact(embedding=True), lambda g: g.normal(0, 1, (1, 64))),
        (OutputFact(SIGMOID), lambda g: g.normal(0, 3, (1, 200, 4))),
        (OutputFact(LINEAR, -1), lambda g: 4 * g.normal(0, 1, (1, 200, 6))),
    ],
    ids=["values", "embedding", "probabilities", "positions"],
)
def test_the_noise_of_samples_that_made_no_ranges_counts(
    fact: OutputFact, make: Any, generator: np.random.Generator
) -> None:
    losses = []
    outputs = [make(generator) for _ in range(16)]
    noise = [0.1 * (5.0 if index < 4 else 1.0) * generator.normal(0, 1, outputs[0].shape) for index in range(16)]
    finish = sigmoid if fact.activation == SIGMOID else lambda array: array
    for marked in (False, True):
        judges = OutputJudges({"y": fact})
        for index, (output, error) in enumerate(zip(outputs, noise, strict=True)):
            if marked and index == 4:
                judges.others_follow()
            before, after = (np.asarray(finish(array), np.float32) for array in (output, output + error))
            judges.add(FEED, {"y": before}, {"y": after})
        found = judges.judged()["y"]
        assert found is not None
        losses.append(found.loss)
    assert losses[1] > 1.2 * losses[0]


def test_of_what_a_threshold_lets_through_one_in_fifty_may_change_however_unsure(
    generator: np.random.Generator,
) -> None:
    logits = generator.normal(-4, 3, (20, 1, 400))
    for size, inside in ((0.03, True), (0.3, False)):
        pairs = [(sigmoid(some), sigmoid(some + size * generator.normal(0, 1, some.shape))) for some in logits]
        found = of(OutputFact(SIGMOID), *pairs)
        assert loss.inside_budget(found.loss) is inside
        assert found.loss >= 0.4 * found.value
