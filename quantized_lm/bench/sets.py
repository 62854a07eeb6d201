"""One set of lists on all systems: the random GPT-2s beside the peers, and a bundled model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from quantized_lm.artifact import bundled_path
from quantized_lm.bench import lists
from quantized_lm.bench.installs import Environment, torch_requirement
from quantized_lm.bench.lists import Tokens
from quantized_lm.bench.options import BUNDLED, BenchOptions
from quantized_lm.bench.own import REFERENCE, packed_path
from quantized_lm.bench.peers.protocol import Task
from quantized_lm.bench.random_artifact import as_texts, write_random_artifact
from quantized_lm.bench.report import ListSet, SystemRow, rows_of
from quantized_lm.bench.rounds import Scores, Track, time_systems
from quantized_lm.bench.systems import (
    OWN,
    PEERS,
    THREADS,
    SystemSpec,
    bundled_systems,
    own_systems,
    peer_systems,
)
from quantized_lm.bench.weights import (
    PACKINGS,
    Size,
    count_multiplied,
    count_parameters,
    write_gpt2,
    write_packed,
)
from quantized_lm.bench.workers import ProcessWorker, Worker, WorkerError
from quantized_lm.manifest import read_manifest
from quantized_lm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Setting:
    """What all sets share.

    Attributes:
        missing: peer -> why it is not installed.
    """

    options: BenchOptions
    environment: Environment
    track: Track
    missing: dict[str, str] = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        """A folder of the output, made."""
        path = self.options.output.absolute() / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def install_peers(self) -> None:
        """Install what the peers need; note what cannot be had."""
        for name in self.track(list(PEERS), "installing other systems"):
            reason = self.environment.install((torch_requirement(), *PEERS[name].requirements))
            if reason is not None:
                self.missing[name] = f"not installed: {reason}"


@dataclass(frozen=True)
class Starter:
    """Starts the process of any system on one set of lists."""

    setting: Setting
    task: Task
    folder: Path

    def __call__(self, spec: SystemSpec) -> Worker:
        """A warm process.

        Raises:
            WorkerError: it is not installed or does not start.
        """
        if spec.peer in self.setting.missing:
            raise WorkerError(self.setting.missing[spec.peer])
        task = replace(self.task, variant=spec.variant, backend=spec.backend, threads=spec.threads)
        name = f"{spec.name}-{spec.threads}.log".replace(" ", "-").replace("/", "-")
        return ProcessWorker(spec, task, self.setting.environment, self.folder / name)


def gpt2_task(name: str, size: Size, setting: Setting) -> Task:
    """A random GPT-2 with every packing and its lists, written down."""
    folder = setting.folder(f"gpt2-{size.num_layers}x{size.model_dim}")
    weights = folder / "weights.safetensors"
    write_gpt2(size, weights)
    for packing in setting.track(setting.options.packings, f"size {name}: packing"):
        write_packed(weights, size.num_heads, PACKINGS[packing], packed_path(folder, packing))
    source = folder / "lists.json"
    source.write_text(json.dumps(size.draw_lists()), encoding="utf-8")
    return Task(str(weights), str(source), size.num_heads, THREADS, "", str(folder))


def gpt2_set(name: str, size: Size, setting: Setting) -> ListSet:
    """A random GPT-2 on made-up lists: every peer, then every packing of ours."""
    task = gpt2_task(name, size, setting)
    start = Starter(setting, task, setting.folder(f"logs/{name}"))
    packings = setting.options.packings
    specs = [*(peer_systems() if setting.options.peers else ()), *own_systems(packings)]
    times = time_systems(specs, start, size.lists, setting.options.rounds, setting.track)
    exact = [SystemSpec(packing, OWN, packing, REFERENCE) for packing in packings]
    same_weights = {
        spec.variant: _scores(start, spec, size.lists)
        for spec in setting.track(exact, f"size {name}: float32 scores of packed weights")
    }
    millions = count_parameters(Path(task.weights)) / 1e6
    title = (
        f"GPT-2 {name}: {size.num_layers} layers of {size.model_dim}, {millions:.1f} M parameters, "
        "random weights, made-up lists"
    )
    tokens = size.draw_lists()
    operations = 2 * count_multiplied(Path(task.weights)) * lists.mean_shape(tokens).nodes
    return _list_set(name, title, tokens, rows_of(times, same_weights, operations))


def gpt2_artifact(
    name: str, size: Size, setting: Setting, packing: str
) -> tuple[Path, list[tuple[str, ...]]]:
    """A packing as a model that can be served, and the texts of its lists."""
    task = gpt2_task(name, size, setting)
    folder = Path(task.cache)
    packed = packed_path(folder, packing)
    artifact = packed.with_suffix("")
    files = (Path(task.weights), packed)
    write_random_artifact(f"gpt2-{name}", size.num_heads, files, artifact)
    return artifact, [as_texts(one) for one in size.draw_lists()]


def bundled_task(name: str, texts: Sequence[Sequence[str]], setting: Setting) -> Task:
    """A bundled model and its lists, written down; without weights a process takes that model."""
    source = setting.folder("texts") / f"{name.replace(' ', '-')}.json"
    source.write_text(json.dumps(texts), encoding="utf-8")
    return Task("", str(source), 0, THREADS, BUNDLED, "", "cpu")


def bundled_set(name: str, texts: Sequence[Sequence[str]], setting: Setting) -> ListSet:
    """The bundled model as it is served, from texts to scores."""
    task = bundled_task(name, texts, setting)
    start = Starter(setting, task, setting.folder(f"logs/{BUNDLED}"))
    specs = bundled_systems(BUNDLED)
    times = time_systems(specs, start, len(texts), setting.options.rounds, setting.track)
    tokenizer = _bundled_tokenizer()
    tokens = [[tokenizer.encode(text).ids for text in one] for one in texts]
    title = f"{BUNDLED} from text to scores; lists: {name}"
    return _list_set(f"{BUNDLED} {name}", title, tokens, rows_of(times, {}))


def _list_set(
    name: str, title: str, tokens: Sequence[Sequence[Tokens]], rows: tuple[SystemRow, ...]
) -> ListSet:
    ratios = tuple(lists.shape_of(one).ratio for one in tokens)
    return ListSet(name, title, lists.mean_shape(tokens), ratios, rows)


def _scores(start: Starter, spec: SystemSpec, num_lists: int) -> Scores:
    worker = start(spec)
    try:
        return [worker.scores(index) for index in range(num_lists)]
    finally:
        worker.stop()


def _bundled_tokenizer() -> Tokenizer:
    folder = bundled_path(BUNDLED)
    rules = read_manifest(folder).text
    content = (folder / "tokenizer.json").read_bytes()
    return Tokenizer.from_json(content, rules, where=str(folder / "tokenizer.json"))
