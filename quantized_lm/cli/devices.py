"""The options of commands that load a model to score, and of those that train: where, and how."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from quantized_lm.errors import DataError
from quantized_lm.ops import AUTO, BACKENDS, DEVICES

DEVICE_VARIABLE = "SECONDPASS_DEVICE"
THREADS_VARIABLE = "SECONDPASS_THREADS"
BACKEND_VARIABLE = "SECONDPASS_BACKEND"

DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="|".join((*DEVICES, AUTO)),
        envvar=DEVICE_VARIABLE,
        help="Where the model runs; cuda is an NVIDIA GPU, auto the CPU.",
    ),
]
ThreadsOption = Annotated[
    int,
    typer.Option(
        min=0, envvar=THREADS_VARIABLE, help="Threads of the CPU engine; 0: one on each core."
    ),
]
BackendOption = Annotated[
    str,
    typer.Option(
        metavar="|".join((*BACKENDS, AUTO)),
        envvar=BACKEND_VARIABLE,
        help="Kernels of the packed layers; auto: the device's own.",
    ),
]
TrainingDeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="|".join(DEVICES),
        help="Where to train; cuda is an NVIDIA GPU and needs torch's CUDA build.",
    ),
]


def require_training_device(name: str) -> None:
    """Refuse a device that torch cannot train on here, before anything is read.

    Raises:
        DataError: there is no such device.
    """
    if name not in DEVICES:
        raise DataError(f"--device is {name!r}; need one of {', '.join(DEVICES)}")
    if name == "cpu":
        return
    torch = importlib.import_module("torch")
    if not torch.backends.cuda.is_built():
        raise DataError(f"--device {name}: this torch is a build for CPUs; install its CUDA build")
    if not torch.cuda.is_available():
        raise DataError(f"--device {name}: torch finds no CUDA device; leave it out")
