"""Open ONNX Runtime sessions and run them; its failures become one-line errors."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime

from onnxq.core import scratch
from onnxq.core.processors import free_processors
from onnxq.data.feeds import Feed, InputSpec
from onnxq.errors import CalibrationError, ModelError, RecipeError
from onnxq.graph.files.cut_files import refuse_cut
from onnxq.graph.views.outputs import Model, without_weights
from onnxq.runtime import custom_ops
from onnxq.runtime.reasons import reason

__all__ = ["CPU", "InputSpec", "Session", "open_session", "provider_named", "providers_from", "session_of"]

CPU = "CPUExecutionProvider"

PREPARED = "prepared model"
"""What messages call a model in memory: it is not the user's file that the runtime speaks of."""

_MOST_THREADS = 256
"""More than this, or than the processors where there are more, would only take memory and time to start."""

_DTYPES: dict[str, Any] = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "bool": np.bool_,
    "string": np.str_,
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
    "float8e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8e5m2": ml_dtypes.float8_e5m2,
    **{f"{sign}int{bits}": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class TookTooLongError(ModelError):
    """A run was ended since it took longer than it was allowed."""


def _tensor_dtype(type_text: str) -> np.dtype[Any] | None:
    """Numpy type of ``tensor(<name>)``; None for sequences, maps and what numpy has no type for."""
    if not (type_text.startswith("tensor(") and type_text.endswith(")")):
        return None
    found = _DTYPES.get(type_text[len("tensor(") : -1])
    return None if found is None else np.dtype(found)


class Session:
    """A model that is ready to run.

    Attributes:
        label: what messages call the model.
        output_names: in the order of the model.
        output_dtypes: element type by output name; None for outputs that are no tensors.
        keep: what has to live as long as the session.
        source: contents of the model file, or its path; None where the model was in memory otherwise.
        optimize: opened with all graph optimizations, or with none.
        threads: threads an operator may use; None where the runtime chose.
    """

    def __init__(self, session: onnxruntime.InferenceSession, label: str) -> None:
        self.label = label
        self.keep: object = None
        self.source: bytes | Path | None = None
        self.optimize = True
        self.threads: int | None = None
        self._session = session
        self._halves = {
            value.name: dtype
            for value in session.get_inputs()
            if (dtype := _tensor_dtype(value.type)) is not None and dtype.name == "float16"
        }
        self.output_names: list[str] = [output.name for output in session.get_outputs()]
        self.output_dtypes: dict[str, np.dtype[Any] | None] = {
            output.name: _tensor_dtype(output.type) for output in session.get_outputs()
        }

    @property
    def input_specs(self) -> list[InputSpec]:
        """What the model takes; initializers that could be overridden are not inputs.

        Raises:
            ModelError: an input is no tensor.
        """
        specs = []
        for value in self._session.get_inputs():
            dtype = _tensor_dtype(value.type)
            if dtype is None:
                raise ModelError(
                    f"{self.label}: input '{value.name}' is a {value.type}; only models that take tensors can be fed"
                )
            specs.append(InputSpec(value.name, dtype, tuple(value.shape)))
        return specs

    @property
    def output_specs(self) -> list[InputSpec]:
        """What the model gives, in the terms of inputs; without outputs that are no tensors."""
        found = ((value, _tensor_dtype(value.type)) for value in self._session.get_outputs())
        return [InputSpec(v.name, dtype, tuple(v.shape)) for v, dtype in found if dtype is not None]

    def run(self, feed: Feed, outputs: Sequence[str] | None = None, *, seconds: float | None = None) -> list[Any]:
        """Run the model once.

        Args:
            feed: arrays by input name; float32 for an input that takes float16 is rounded, so that a model whose inputs
                were halved takes the samples of its float32 original.
            outputs: names of the outputs to give; None gives all.
            seconds: the run is ended after this time; None lets it take what it takes.

        Returns:
            One array for each output; a list for an output that is a sequence.

        Raises:
            ModelError: the runtime refused the feed or failed.
            TookTooLongError: it was ended.
        """
        if outputs is not None and not outputs:
            return []  # the runtime takes an empty list for all of them
        for name, dtype in self._halves.items():
            if name in feed and feed[name].dtype == np.float32:
                feed = {**feed, name: feed[name].astype(dtype)}
        options = onnxruntime.RunOptions()
        ended = threading.Event()

        def end() -> None:
            ended.set()
            options.terminate = True

        watch = threading.Timer(seconds, end) if seconds is not None else None
        try:
            if watch is not None:
                watch.daemon = True
                watch.start()
            result: list[Any] = self._session.run(None if outputs is None else list(outputs), feed, options)
        except Exception as error:  # the runtime's exceptions have no common base
            if ended.is_set():
                raise TookTooLongError(f"{self.label}: one run takes more than {seconds:g} s") from error
            raise ModelError(f"{self.label}: onnxruntime cannot run it: {reason(error)}") from error
        finally:
            if watch is not None:
                watch.cancel()
        refuse_cut()
        return result

    def end_profiling(self) -> Path:
        """Stop profiling a session that was opened with ``profile``; the file that holds the profile."""
        return Path(self._session.end_profiling())


def provider_named(name: str) -> str:
    """The execution provider of that name; ``cpu`` and the like are short for ``CPUExecutionProvider``.

    Raises:
        CalibrationError: the installed ONNX Runtime does not have it; the message lists what it has.
    """
    available = [str(provider) for provider in onnxruntime.get_available_providers()]
    for provider in available:
        if name.lower() in (provider.lower(), provider.removesuffix("ExecutionProvider").lower()):
            return provider
    raise CalibrationError(
        f"provider '{name}': not in the installed onnxruntime {onnxruntime.__version__}; "
        f"available are {', '.join(available)}"
    )


def providers_from(provider: str) -> list[str]:
    """The provider, and the CPU for what it cannot run."""
    return [provider] if provider == CPU else [provider, CPU]


def open_session(
    model: bytes | Path,
    *,
    optimize: bool = True,
    threads: int | None = None,
    providers: Sequence[str] = (CPU,),
    profile: Path | None = None,
    label: str | None = None,
    save_to: Path | None = None,
    timed: bool = False,
) -> Session:
    """Open a model in ONNX Runtime, which logs nothing.

    Unless it is timed, threads that wait for each other sleep. The runtime's default is to spin, which is a little
    faster on a machine that does nothing else, and many times slower on a busy one: a thread spins for another that the
    system has put aside to let it spin.

    Args:
        model: contents of a model file, or its path (which external data needs).
        optimize: all graph optimizations, or none.
        threads: threads an operator may use; None takes the processors that are free to this process, and lets the
            runtime choose where it is timed.
        providers: execution providers by preference, by their full names.
        profile: write the runtime's profile there, under this name and a time; see `Session.end_profiling`.
        label: what messages call the model; None takes the path, or ``model``.
        save_to: write the optimized model there; it can be opened on this kind of machine only.
        timed: with the runtime's own defaults, as users run it; a profile implies it.

    Raises:
        ModelError: the runtime cannot load the model; the message has its reason.
    """
    options = _options(optimize, threads, timed=timed or profile is not None)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
    label = label or (str(model) if isinstance(model, Path) else "model")
    with ExitStack() as stack:
        session = _opened(_as_source(model, options, stack), options, providers, label)
    session.source, session.optimize, session.threads = model, optimize, threads
    return session


def _as_source(model: bytes | Path, options: onnxruntime.SessionOptions, stack: ExitStack) -> bytes | str:
    """What the runtime is given: it takes no path that is not UTF-8, as all with an umlaut are under LC_ALL=C.

    Of such a file it gets the contents, and a link of a plain name to the folder where its weights are.
    """
    if isinstance(model, bytes):
        return model
    try:
        str(model).encode()
    except UnicodeEncodeError:
        link = stack.enter_context(scratch.folder()) / "folder"
        link.symlink_to(model.resolve().parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(link))
        return model.read_bytes()
    return str(model)


def _options(optimize: bool, threads: int | None, *, timed: bool = False) -> onnxruntime.SessionOptions:
    most = max(_MOST_THREADS, os.cpu_count() or 1)
    if threads is not None and not 1 <= threads <= most:
        raise RecipeError(f"--threads: {threads} is not in 1…{most}; use no more than the machine has processors")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.inter_op_num_threads = 1
    custom_ops.register(options)
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle sessions leave the cores to others
    if not timed:
        threads = threads or free_processors()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _opened(source: bytes | str, options: onnxruntime.SessionOptions, providers: Sequence[str], label: str) -> Session:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            session = onnxruntime.InferenceSession(source, options, providers=list(providers))
    except Exception as error:  # the runtime's exceptions have no common base
        refuse_cut()
        raise ModelError(f"{label}: onnxruntime {onnxruntime.__version__} cannot load it: {reason(error)}") from error
    refuse_cut()
    if providers and providers[0] not in session.get_providers():
        raise CalibrationError(
            f"provider '{providers[0]}': could not be started, its libraries are missing or no device is there; "
            f"use {CPU}"
        )
    return Session(session, label)


def open_mapped(model: Path, *, optimize: bool, threads: int | None = None, label: str | None = None) -> Session:
    """Open a model for a few runs, its weights where they are in its mapped files: none is copied or laid out anew.

    Args:
        model: a file whose weights are in others beside it.
        optimize: as for `open_session`, and likewise below.
        threads: see there.
        label: see there.

    Raises:
        ModelError: the runtime cannot load the model.
    """
    options = _options(optimize, threads)
    _look_only(options)
    with ExitStack() as stack:
        return _opened(_as_source(model, options, stack), options, (CPU,), label or str(model))


def open_in_order(model: Path, *, threads: int | None, label: str) -> Session:
    """Open a model whose nodes are run in the order of the file, as far as their inputs allow.

    Args:
        model: its file.
        threads: as for `open_session`.
        label: what messages call the model.

    Raises:
        ModelError: the runtime cannot load the model.
    """
    options = _options(True, threads)
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    with ExitStack() as stack:
        return _opened(_as_source(model, options, stack), options, (CPU,), label)


def _look_only(options: onnxruntime.SessionOptions) -> None:
    """Lay out no weights anew, and keep no memory that was needed once."""
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = False


def session_of(
    model: Model,
    *,
    optimize: bool = True,
    threads: int | None = None,
    providers: Sequence[str] = (CPU,),
    label: str = PREPARED,
    save_to: Path | None = None,
    packed: bool = True,
) -> Session:
    """Open a model in memory, of any size; the session shares its weights.

    Args:
        model: unchanged; its weights must not be changed while the session lives.
        optimize: as for `open_session`.
        threads: as for `open_session`.
        providers: as for `open_session`.
        label: as for `open_session`.
        save_to: write the optimized model there, its weights beside it; it can be opened on this kind of machine only.
        packed: let kernels lay out their weights anew, which takes longer than the few runs of a quick look.

    Raises:
        ModelError: the runtime cannot load the model.
    """
    content, weights = without_weights(model)
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options = _options(optimize, threads)
    if not packed:
        _look_only(options)
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
        prefix = "session.optimized_model_external_initializers"
        options.add_session_config_entry(f"{prefix}_file_name", f"{save_to.name}.data")
        options.add_session_config_entry(f"{prefix}_min_size_in_bytes", "4096")
    options.add_external_initializers(list(weights), values)
    session = _opened(content, options, providers, label)
    session.keep = values
    return session
