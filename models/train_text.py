"""Train a language network on a text and write its ONNX file, calibration samples and test samples.

    python models/train_text.py tiny_lm kjv.txt      # or text_encoder, text_lstm, or all
    python models/train_text.py all kjv.txt --quick --folder try      # a few steps, to see that everything works

The text is the caller's, one verse a line; README.md says how to get the one that these models learnt. Needs torch,
onnx and onnxscript; takes two to five minutes a network on one core. Repeated runs on one machine and one version of
torch write the same bytes.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import verses
from text_export import export
from text_networks import Decoder, text_encoder, text_lstm, tiny_lm
from vocabulary import CHARACTER_PIECES, PADDING, Vocabulary, learn

PIECES = 1024
WINDOW = 128
TEST_WINDOWS = 128
GENERATED = 64
LONGEST = 192
QUICK_STEPS = 20
VOCABULARY = "text.vocab.json"


@dataclass(frozen=True)
class Text:
    """What to learn from, what to score on, and the vocabulary of the former."""

    train: verses.Part
    test: verses.Part
    vocabulary: Vocabulary


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode and its samples, arrays by input name and ``labels``."""

    network: nn.Module
    calibration: dict[str, np.ndarray]
    test: dict[str, np.ndarray]


Batches = Iterator[tuple[tuple[Tensor, ...], Tensor]]


def cosine(steps: int) -> Callable[[int], float]:
    """Factors of the learning rate: a linear twentieth up, half a cosine down."""
    warm_up = max(1, steps // 20)
    return lambda step: (step + 1) / warm_up if step < warm_up else 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-3


def trapezoid(steps: int) -> Callable[[int], float]:
    """Factors of the learning rate: linear up, level, linear down over the last quarter.

    As good as a cosine, and what comes before the last quarter serves any number of steps (Hägele et al., 2024).
    """
    return lambda step: min(1.0, (step + 1) / 100, (steps - step) / (steps // 4))


def fit(
    network: nn.Module, batches: Batches, steps: int, rate: float, factor: Callable[[int], float], decay: float
) -> None:
    """Minimise the cross entropy of the last axis of the network's output and the labels.

    AdamW; matrices are multiplied in bfloat16 and kept in float32.
    """
    torch.use_deterministic_algorithms(True)
    matrices = [parameter for parameter in network.parameters() if parameter.dim() >= 2]
    others = [parameter for parameter in network.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    network.train()
    began, recent = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        inputs, labels = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(*inputs)
        loss = nn.functional.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent += loss.item()
        if step % 100 == 0:
            print(f"step {step:5} of {steps} loss {recent / 100:.4f} {time.monotonic() - began:.0f} s", file=sys.stderr)
            recent = 0.0
    network.eval()


def windows(ids: np.ndarray, count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows spread evenly over a text and the ids that follow each of theirs, both (count, length) int64."""
    starts = np.linspace(0, len(ids) - length - 1, count).astype(np.int64)
    taken = ids[starts[:, None] + np.arange(length + 1)]
    return taken[:, :-1], taken[:, 1:]


def random_windows(ids: np.ndarray, batch: int, length: int, rng: np.random.Generator) -> Batches:
    """Endless batches of windows that start anywhere in a text."""
    while True:
        taken = torch.from_numpy(ids[rng.integers(0, len(ids) - length, batch)[:, None] + np.arange(length + 1)])
        yield (taken[:, :-1],), taken[:, 1:]


def perplexity(network: nn.Module, x: np.ndarray, labels: np.ndarray) -> float:
    """The exponential of the mean negative log likelihood of the labels."""
    with torch.inference_mode():
        logits = network(torch.from_numpy(x))
    return math.exp(nn.functional.cross_entropy(logits.flatten(0, -2), torch.from_numpy(labels).flatten()))


def unigram_perplexity(ids: np.ndarray, labels: np.ndarray, pieces: int) -> float:
    """The same, for the frequencies of the training part instead of a network."""
    counts = np.bincount(ids, minlength=pieces) + 1.0
    return float(np.exp(-np.log(counts / counts.sum())[labels].mean()))


def generate(network: Decoder, count: int, length: int) -> np.ndarray:
    """Ids that the model writes itself: the first any but padding, the others drawn from its softmax.

    Calibration data without data, as in Liu et al., *LLM-QAT: Data-Free Quantization Aware Training for Large Language
    Models*, 2023.
    """
    generator = torch.Generator().manual_seed(verses.SEED)
    pieces = len(network.embedding.weight)
    ids = torch.randint(PADDING + 1, pieces, (count, 1), generator=generator)
    with torch.inference_mode():
        while ids.shape[1] < length:
            chances = torch.softmax(network(ids)[:, -1], dim=-1)
            ids = torch.cat((ids, torch.multinomial(chances, 1, generator=generator)), dim=1)
    return ids.numpy()


def train_tiny_lm(text: Text, *, quick: bool) -> Trained:
    """Train ``tiny_lm`` on all of the text."""
    ids = np.array(text.vocabulary.encode(text.train.running()), np.int64)
    x, labels = windows(np.array(text.vocabulary.encode(text.test.running()), np.int64), TEST_WINDOWS, WINDOW)
    torch.manual_seed(verses.SEED)
    network = tiny_lm(len(text.vocabulary))
    batches = random_windows(ids, 16, WINDOW, np.random.default_rng(verses.SEED))
    steps = QUICK_STEPS if quick else 1600
    fit(network, batches, steps, 3e-3, trapezoid(steps), 0.1)
    unigram = unigram_perplexity(ids, labels, len(text.vocabulary))
    print(f"tiny_lm: test perplexity {perplexity(network, x, labels):.3f}, unigram {unigram:.1f}")
    return Trained(network, {"input_ids": generate(network, GENERATED, WINDOW)}, {"input_ids": x, "labels": labels})


def train_text_lstm(text: Text, *, quick: bool) -> Trained:
    """Train ``text_lstm``, which reads and writes characters."""
    ids = np.array(text.vocabulary.characters(text.train.running()), np.int64)
    x, labels = windows(np.array(text.vocabulary.characters(text.test.running()), np.int64), 512, 64)
    calibration = windows(ids, 128, 64)
    torch.manual_seed(verses.SEED)
    network = text_lstm(CHARACTER_PIECES)
    batches = random_windows(ids, 64, WINDOW, np.random.default_rng(verses.SEED))
    steps = QUICK_STEPS if quick else 1000
    fit(network, batches, steps, 5e-3, cosine(steps), 0.0)
    unigram = unigram_perplexity(ids, labels, CHARACTER_PIECES)
    print(f"text_lstm: test perplexity {perplexity(network, x, labels):.3f}, unigram {unigram:.1f}")
    samples = dict(zip(("input_ids", "labels"), calibration, strict=True))
    return Trained(network, samples, {"input_ids": x, "labels": labels})


def padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and attention mask, both (n, longest) int64."""
    ids = np.full((len(rows), max(map(len, rows))), PADDING, np.int64)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = values
    return ids, (ids != PADDING).astype(np.int64)


def random_verses(rows: list[list[int]], labels: np.ndarray, batch: int, rng: np.random.Generator) -> Batches:
    """Endless batches of padded verses with, against overfitting, one piece in five masked as if it were padding.

    Verses of about the same length are together, in batches of random order.
    """
    lengths = np.array([len(row) for row in rows])
    while True:
        by_length = np.argsort(lengths + rng.uniform(0, 16, len(rows)))
        batches = np.array_split(by_length, len(rows) // batch)
        for chosen in (batches[number] for number in rng.permutation(len(batches))):
            ids, mask = padded([rows[index] for index in chosen])
            mask *= rng.random(mask.shape) >= 0.2
            mask[:, 0] = 1
            yield (torch.from_numpy(ids), torch.from_numpy(mask)), torch.from_numpy(labels[chosen])


def drawn_by_group(
    part: verses.Part, chosen_from: dict[str, int], each: int, vocabulary: Vocabulary
) -> dict[str, np.ndarray]:
    """Samples of so many verses of each group, drawn at random: ``input_ids``, ``attention_mask`` and ``labels``."""
    rng = np.random.default_rng(verses.SEED)
    indices = np.array(list(chosen_from.values()))
    drawn = [rng.permutation(indices[part.labels[indices] == label])[:each] for label in range(len(verses.GROUPS))]
    order = np.sort(np.concatenate(drawn))
    ids, mask = padded([vocabulary.encode(part.verses[index]) for index in order])
    return {"input_ids": ids, "attention_mask": mask, "labels": part.labels[order]}


def train_text_encoder(text: Text, *, quick: bool) -> Trained:
    """Train ``text_encoder``, which tells the group of a verse."""
    train, test, vocabulary = text.train, text.test, text.vocabulary
    # Some verses are in the text more than once.
    of_test = {verse: index for index, verse in enumerate(test.verses)}
    of_train = {verse: index for index, verse in enumerate(train.verses) if verse not in of_test}
    calibration = drawn_by_group(train, of_train, 32, vocabulary)
    samples = drawn_by_group(test, of_test, 100, vocabulary)
    chosen = list(of_train.values())
    rows = [vocabulary.encode(train.verses[index]) for index in chosen]
    torch.manual_seed(verses.SEED)
    network = text_encoder(len(vocabulary), LONGEST, len(verses.GROUPS))
    batches = random_verses(rows, train.labels[chosen], 64, np.random.default_rng(verses.SEED))
    steps = QUICK_STEPS if quick else 2600
    fit(network, batches, steps, 2e-3, cosine(steps), 0.1)
    with torch.inference_mode():
        logits = network(torch.from_numpy(samples["input_ids"]), torch.from_numpy(samples["attention_mask"]))
    accuracy = (logits.argmax(1).numpy() == samples["labels"]).mean()
    print(f"text_encoder: test accuracy {accuracy:.4f}")
    return Trained(network, calibration, samples)


def write(stem: str, trained: Trained, folder: Path) -> None:
    """Write the ONNX file and both files of samples to ``models`` and ``calibration_data`` in the folder."""
    path = folder / "models" / f"{stem}.onnx"
    files = {
        folder / "calibration_data" / f"{stem}.npz": trained.calibration,
        folder / "models" / f"{stem}.test.npz": trained.test,
    }
    for file, arrays in files.items():
        np.savez_compressed(file, **arrays)
    export(trained.network, [name for name in trained.test if name != "labels"], path)
    print(f"{stem}: {sum(parameter.numel() for parameter in trained.network.parameters())} parameters")
    for file in (path, *files):
        print(f"  {file.relative_to(folder)}: {file.stat().st_size} bytes")


NETWORKS: dict[str, Callable[..., Trained]] = {
    "tiny_lm": train_tiny_lm,
    "text_encoder": train_text_encoder,
    "text_lstm": train_text_lstm,
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train the language networks in models/; see models/README.md.")
    parser.add_argument("network", choices=[*NETWORKS, "all"])
    parser.add_argument("text", type=Path, help="one verse a line: Ge1:1 In the beginning")
    parser.add_argument(
        "--folder", type=Path, default=verses.HERE.parent, help="where models/ and calibration_data/ are"
    )
    parser.add_argument("--quick", action="store_true", help="a few steps only; the files are written all the same")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("models", "calibration_data"):
        (options.folder / name).mkdir(parents=True, exist_ok=True)
    train, test = verses.split(options.text)
    text = Text(train, test, learn(train.running(), PIECES))
    text.vocabulary.save(options.folder / "models" / VOCABULARY)
    for stem in NETWORKS if options.network == "all" else [options.network]:
        write(stem, NETWORKS[stem](text, quick=options.quick), options.folder)


if __name__ == "__main__":
    main()
