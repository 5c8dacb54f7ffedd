"""What runs in the interpreter that has onnxruntime-genai: a model of the Llama shape, its builder, and times.

Every function here is a job of `benchmarks.jobs`; nothing of onnxq is imported.
"""

from __future__ import annotations

import importlib
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WARM_UP = 2


def make_llama(output: str, shape: Mapping[str, int]) -> dict[str, Any]:
    """A folder of transformers: Llama with random weights, and a tokenizer of single bytes.

    Args:
        output: the folder.
        shape: fields of its `LlamaConfig`.
    """
    tokenizers, torch = importlib.import_module("tokenizers"), importlib.import_module("torch")
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    ids = {**{symbol: number for number, symbol in enumerate(alphabet)}, "<s>": 256, "</s>": 257}
    bytewise = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=[]))
    bytewise.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = tokenizers.decoders.ByteLevel()
    config = transformers.LlamaConfig(
        **shape, max_position_embeddings=4096, bos_token_id=256, eos_token_id=257, tie_word_embeddings=False
    )
    transformers.LlamaForCausalLM(config).save_pretrained(output)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=bytewise, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(output)
    return {}


def build(source: str, output: str, precision: str) -> dict[str, Any]:
    """onnxruntime-genai's builder, as its command line is called."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", source, "-o", output]
    command += ["-p", precision, "-e", "cpu", "-c", str(Path(output).parent / "cache")]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the builder failed: {done.stderr.strip().splitlines()[-1:]}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = {"seconds": time.perf_counter() - started, "processor_seconds": used.ru_utime + used.ru_stime}
    return {**found, "builder_peak_bytes": used.ru_maxrss * 1024}


def times(folders: Mapping[str, str], tokens: int, steps: int, rounds: int) -> dict[str, Any]:
    """Time models in turns: a prompt, and tokens behind it one by one, as genai generates.

    Args:
        folders: of genai, by name.
        tokens: of the prompt.
        steps: tokens that are generated.
        rounds: how often each model has its turn.

    Returns:
        ``prefill`` and ``decode``: lists of seconds by name, a number a round; of decoding the median of the steps.
    """
    genai: Any = importlib.import_module("onnxruntime_genai")
    numpy: Any = importlib.import_module("numpy")
    ids = numpy.arange(tokens, dtype=numpy.int32) % 250
    models = {name: genai.Model(folder) for name, folder in folders.items()}
    found: dict[str, Any] = {"prefill": {name: [] for name in models}, "decode": {name: [] for name in models}}
    for number in range(rounds + 1):
        for name, model in models.items():
            parameters = genai.GeneratorParams(model)
            length = tokens + steps + WARM_UP + 2
            parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
            generator = genai.Generator(model, parameters)
            started = time.perf_counter()
            generator.append_tokens(ids)
            generator.generate_next_token()
            prefill, taken = time.perf_counter() - started, []
            for step in range(steps + WARM_UP):
                started = time.perf_counter()
                generator.generate_next_token()
                if step >= WARM_UP:
                    taken.append(time.perf_counter() - started)
            if number:  # the first turn warms up
                found["prefill"][name].append(prefill)
                found["decode"][name].append(float(numpy.median(taken)))
    return found
