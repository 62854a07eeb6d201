"""The options of every command that loads a model to score: where, and with which kernels."""

from __future__ import annotations

from typing import Annotated

import typer

from quantized_lm.ops import AUTO, BACKENDS, DEVICES

DEVICE_VARIABLE = "SECONDPASS_DEVICE"
THREADS_VARIABLE = "SECONDPASS_THREADS"
BACKEND_VARIABLE = "SECONDPASS_BACKEND"

DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="|".join((*DEVICES, AUTO)),
        envvar=DEVICE_VARIABLE,
        help="Where the model runs; cuda is an NVIDIA GPU, auto the CPU if it can.",
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
