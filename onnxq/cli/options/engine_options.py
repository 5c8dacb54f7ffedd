"""Options that say what runs and times models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from onnxq.cli.options.shared_options import FILE, F, option


def _options_of_provider(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{value!r} is no pair; write KEY=VALUE, such as device_type=CPU", ctx, parameter)
        if key in found:
            raise click.BadParameter(f"{key!r} is given twice; it has one value", ctx, parameter)
        found[key] = text
    return found


def engine_options(group: str, *, python: bool = False, ray: bool = False) -> Callable[[F], F]:
    """Add --device, --provider, --provider-option, --engine and --node-modules; the command gets ``runs_on``.

    Args:
        group: heading.
        python: add --engine-python too, for commands that do not have it.
        ray: add --ray-address too, for commands whose work can be spread.
    """

    def add(function: F) -> F:
        @functools.wraps(function)
        def with_place(*args: Any, **options: Any) -> Any:
            names = ("provider", "provider_options", "engine", "node_modules")
            given = {"device": options.pop("place"), **{name: options.pop(name) for name in names}}
            if python:
                given["python"] = options.pop("engine_python")
            if ray:
                given["address"] = options.pop("ray_address")
            runs_on = None
            if any(value not in (None, ()) and value != {} for value in given.values()):
                from onnxq.runtime.engines.places import RunsOn

                runs_on = RunsOn(**given)
            return function(*args, runs_on=runs_on, **options)

        found: Any = with_place
        for declare in reversed(_declared(group, python=python, ray=ray)):
            found = declare(found)
        return found  # type: ignore[no-any-return]

    return add


def ray_address(group: str) -> Callable[[Any], Any]:
    """--ray-address."""
    return option(
        "--ray-address",
        metavar="HOST:PORT",
        group=group,
        default_text="a cluster on this machine, for the length of the run",
        help="Head of the Ray cluster of --engine ray; its machines need this version of onnxq.",
    )


def _declared(group: str, *, python: bool, ray: bool) -> list[Callable[[Any], Any]]:
    found = [
        option(
            "--device",
            "place",
            metavar="COMMAND",
            group=group,
            help='A command that gives a shell on the device that runs and times the models, such as "ssh pi@kitchen". '
            "It needs python3 with onnxruntime there; models go over its standard input.",
        ),
        option(
            "--provider",
            metavar="NAME",
            group=group,
            default_text="cpu, or that of --target" if ray else "cpu",
            help="Execution provider of ONNX Runtime, such as CUDA or CUDAExecutionProvider.",
        ),
        option(
            "--provider-option",
            "provider_options",
            metavar="KEY=VALUE",
            multiple=True,
            callback=_options_of_provider,
            group=group,
            help="An option that --provider takes, such as device_id=1. Repeatable.",
        ),
        option(
            "--engine",
            type=click.Choice(["web", "ray"] if ray else ["web"]),
            group=group,
            default_text="ONNX Runtime",
            help="What runs the models. With web: onnxruntime-web on WebAssembly, in the Node that is on the PATH."
            + (" With ray: samples are run, and layers quantized, on a Ray cluster." if ray else ""),
        ),
        option(
            "--node-modules",
            type=FILE,
            metavar="FOLDER",
            group=group,
            default_text="ONNXQ_NODE_MODULES in the environment",
            help="Folder with onnxruntime-web, as 'npm install onnxruntime-web' makes it, for --engine web.",
        ),
    ]
    if ray:
        found.append(ray_address(group))
    if python:
        found.append(
            option(
                "--engine-python",
                type=FILE,
                metavar="FILE",
                group=group,
                default_text="this Python, on a device python3",
                help="Python that has the runtime, here or on --device.",
            )
        )
    return found
