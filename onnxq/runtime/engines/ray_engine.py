"""Tasks on the machines of a Ray cluster; the only module that knows Ray."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from onnxq._version import __version__
from onnxq.errors import EngineError, OnnxqError

_TRIES = 5
"""Times that a task is begun anew whose machine was lost, beside what Ray does by itself."""

_AHEAD = 2
"""Tasks a processor that are handed out at a time: the next is there when one ends."""

_SECONDS = 5.0
"""How long a cluster has to answer before it counts as not there."""

_LOOPBACK = "127.0.0.1"

_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Variable that lets Ray listen where other machines can reach it; on Linux it does so unless this says 0 when it is
imported, whatever address it is given."""


def _facts() -> tuple[str, str, str]:
    """What has to be the same everywhere for results that are the same."""
    return __version__, np.__version__, ".".join(map(str, sys.version_info[:2]))


class RayTasks:
    """Runs tasks on the workers of a cluster.

    A worker that dies is replaced by Ray and its task begun anew; so is every task of a machine that is lost.

    Attributes:
        processors: of the cluster when it was opened.
    """

    def __init__(self, address: str | None = None) -> None:
        """Join a cluster, or start one on this machine that listens on loopback alone.

        Args:
            address: ``host:port`` of a cluster's head, or ``local`` for one of its own; None is ``local``.

        Raises:
            EngineError: Ray is not installed, the cluster does not answer, or its Python, numpy or onnxq is another.
        """
        alone = address in (None, "local")
        if alone:
            os.environ.setdefault(_CLUSTERS, "0")
        try:
            import ray
        except ImportError:
            raise EngineError('--engine ray: Ray is not installed; pip install "onnxq[ray]"') from None
        self._ray: Any = ray
        self._own = not ray.is_initialized()
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "include_dashboard": False}
        try:
            if alone:
                if self._own:
                    ray.init(address="local", **quiet)
                    _check_loopback(ray)
            else:
                assert address is not None
                _answers(address)
                del quiet["include_dashboard"]
                ray.init(address=address, ignore_reinit_error=True, **quiet)
            there = ray.get(ray.remote(_facts).remote(), timeout=60)
        except EngineError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise EngineError(
                f"--engine ray: the cluster {address or 'on this machine'} cannot be used "
                f"({_line(error)}); check its address, and that onnxq is installed on its machines"
            ) from error
        if there != _facts():
            self.close()
            raise EngineError(
                "--engine ray: a machine of the cluster has onnxq {}, numpy {}, Python {}, this one {}, {}, {}; "
                "install the same on both, or results would differ".format(*there, *_facts())
            )
        self.processors = max(int(ray.cluster_resources().get("CPU", 1)), 1)

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        if self._own:
            with suppress(Exception):
                self._ray.shutdown()

    def map(
        self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], shared: tuple[Any, ...] = ()
    ) -> Iterator[Any]:
        """See `onnxq.core.tasks.Tasks.map`.

        Raises:
            EngineError: machines are lost faster than a task can be done.
        """
        remote = self._ray.remote(max_retries=_TRIES)(_call)
        common = self._ray.put(pickle.dumps(shared, protocol=5))
        waiting: deque[tuple[bytes, Any]] = deque()

        def begin(own: bytes) -> Any:
            return remote.remote(function, own, common)

        for own in (pickle.dumps(given, protocol=5) for given in arguments):
            waiting.append((own, begin(own)))
            if len(waiting) >= _AHEAD * self.processors:
                yield self._result(begin, *waiting.popleft())
        while waiting:
            yield self._result(begin, *waiting.popleft())

    def _result(self, begin: Callable[[bytes], Any], own: bytes, task: Any) -> Any:
        for _ in range(_TRIES):
            try:
                return pickle.loads(self._ray.get(task))
            except self._ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, OnnxqError):
                    raise error.cause from None
                raise EngineError(f"--engine ray: a task failed: {_line(error.cause or error)}") from error
            except self._ray.exceptions.RayError:
                task = begin(own)  # its machine, or what it had made, is gone
        raise EngineError(
            f"--engine ray: a task was lost {_TRIES} times with the worker it ran on; it may need more memory than a "
            "machine has, or the cluster is going down"
        )


def _call(function: Callable[..., Any], own: bytes, shared: bytes) -> bytes:
    """Run a task; arrays are packed with all else, since those that Ray shares are read-only on either side."""
    return pickle.dumps(function(*pickle.loads(own), *pickle.loads(shared)), protocol=5)


def _check_loopback(ray: Any) -> None:
    """Make sure that a cluster of this machine's own cannot be reached from others.

    Raises:
        EngineError: it can.
    """
    host = str(ray.get_runtime_context().gcs_address).rpartition(":")[0]
    if host != _LOOPBACK:
        raise EngineError(
            f"--engine ray: Ray would listen on {host}, where other machines reach it; set {_CLUSTERS}=0 before Ray is "
            "imported, or start a cluster yourself and name its --ray-address"
        )


def _answers(address: str) -> None:
    """Whether something listens at ``host:port``: Ray itself would try for a minute and then end the process.

    Raises:
        EngineError: nothing does, or it is no address.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and host and port.isdigit()):
        raise EngineError(f"--ray-address {address}: is no host:port, such as 10.0.0.5:6379; or say local")
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise EngineError(
            f"--ray-address {address}: nothing answers there ({error}); start a head with "
            f"'ray start --head --port {port}', or name another address"
        ) from None


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
