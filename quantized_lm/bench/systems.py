"""PEERS and what is timed of each, and the same for us: the tables that the benchmark walks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from quantized_lm.bench.own import FLOAT

THREADS = 2
OWN = "secondpass"


@dataclass(frozen=True)
class Peer:
    """Another system.

    Attributes:
        module: file of `peers`, without .py.
        requirements: what pip installs for it beside torch.
        variants: what the file calls a way of running it -> what a reader calls it.
    """

    module: str
    requirements: tuple[str, ...]
    variants: Mapping[str, str]


@dataclass(frozen=True)
class SystemSpec:
    """One row to time.

    Attributes:
        name: for a reader; unique with `threads`.
        peer: key in PEERS, or OWN.
        variant: as the process takes it.
        backend: of ours.
        threads: that may compute at a time.
        is_float: whether it computes in float32 with the weights as they are.
    """

    name: str
    peer: str
    variant: str
    backend: str = ""
    threads: int = THREADS
    is_float: bool = False

    @property
    def is_served(self) -> bool:
        """Whether this is ours as the service runs it: native kernels, all threads."""
        return self.peer == OWN and self.backend == "cpu" and self.threads == THREADS


_SAFETENSORS = "safetensors>=0.4.3,<1"
_TRANSFORMERS = "transformers>=5,<6"
PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "transformers": Peer(
            "with_transformers",
            (_TRANSFORMERS, _SAFETENSORS),
            {
                "float32": "transformers float32, padded",
                "bfloat16": "transformers bfloat16, padded",
                "bfloat16 tree": "transformers bfloat16, on our tree",
            },
        ),
        "CTranslate2": Peer(
            "with_ctranslate2",
            ("ctranslate2>=4.8,<5", _TRANSFORMERS, _SAFETENSORS),
            {"int8": "CTranslate2 int8, padded"},
        ),
        "ONNX Runtime": Peer(
            "with_onnxruntime",
            ("onnxruntime>=1.20,<2", "onnx>=1.17,<2", _SAFETENSORS),
            {
                "padded": "ONNX Runtime int8, padded",
                "tree": "ONNX Runtime int8, on our tree",
            },
        ),
        "OpenVINO": Peer(
            "with_openvino",
            ("openvino>=2026.1,<2027", "nncf>=3,<4", _SAFETENSORS),
            {"padded": "OpenVINO int8, padded", "tree": "OpenVINO int8, on our tree"},
        ),
        "llama.cpp": Peer(
            "with_llama_cpp",
            ("llama-cpp-python>=0.3.16,<0.4", "gguf>=0.17,<1", _SAFETENSORS),
            {
                "Q8_0": "llama.cpp Q8_0, prefixes shared",
                "Q4_0": "llama.cpp Q4_0, prefixes shared",
            },
        ),
    }
)
CHART_REQUIREMENTS = ("matplotlib>=3.9,<4",)


def peer_systems() -> list[SystemSpec]:
    """Every way of running every peer; float32 transformers, with which all compare, first."""
    return [
        SystemSpec(name, peer, variant, is_float=variant == "float32")
        for peer, row in PEERS.items()
        for variant, name in row.variants.items()
    ]


def own_systems(packings: Iterable[str]) -> list[SystemSpec]:
    """Torch's float32 on our tree, then these packings with all threads and with one."""
    return [
        SystemSpec(f"{OWN} float32 (torch)", OWN, FLOAT, is_float=True),
        *(
            SystemSpec(f"{OWN} {packing}", OWN, packing, "cpu", threads)
            for packing in packings
            for threads in (THREADS, 1)
        ),
    ]


def bundled_systems(model: str) -> list[SystemSpec]:
    """A bundled model: its dequantized weights in torch's float32, then as it is served."""
    return [
        SystemSpec(f"{model} float32 (torch)", OWN, model, FLOAT, is_float=True),
        *(SystemSpec(f"{model} packed", OWN, model, "cpu", threads) for threads in (THREADS, 1)),
    ]
