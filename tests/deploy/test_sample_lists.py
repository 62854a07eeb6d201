"""The lists that ship, with the commands that the README shows."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from service.cli import build_cli

LISTS = Path(__file__).parents[2] / "deploy" / "sample_lists.jsonl"


def test_weights_tuned_on_two_voices_make_fewer_errors_on_the_others(tmp_path: Path) -> None:
    rescored, weights, best = (str(tmp_path / f"{name}.jsonl") for name in ("r", "w", "b"))
    cli = build_cli()

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(cli, list(arguments))
        assert result.exit_code == 0, result.stderr
        return result.stdout

    run("rescore", str(LISTS), rescored, "--threads", "1")
    run("tune", rescored, weights, "--speakers", "even")
    printed = run("evaluate", rescored, "--weights", weights, "--speakers", "odd")
    (systems,) = (one["systems"] for one in json.loads(printed.splitlines()[-1])["sets"].values())
    assert systems["first_pass"]["words"] == 216
    assert systems["first_pass"]["errors"] == 93
    assert systems["rescored"]["errors"] < 84
    run("rescore", str(LISTS), best, "--weights", weights, "--threads", "1")
    changed = [json.loads(line)["changed"] for line in Path(best).read_text().splitlines()]
    assert len(changed) == 40
    assert sum(changed) > 10
