"""Keys as they are made, stored and found again."""

from __future__ import annotations

import hmac
import json
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service import cli
from service.api_keys import (
    ApiKey,
    KeyFileError,
    change_keys,
    find_key,
    hash_of,
    is_open_to_others,
    new_secret,
    read_keys,
    write_keys,
)


def key(name: str, secret: str, **fields: Any) -> ApiKey:
    """A key of scope score."""
    return ApiKey(
        name=name,
        **{"scopes": ("score",), "created": "2026-11-21", **fields},
        sha256=hash_of(secret),
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where keys are."""
    return tmp_path / "keys.json"


def run(*args: str | Path) -> Any:
    """`secondpass api-key ...`."""
    return CliRunner().invoke(cli.build_cli(), ["api-key", *map(str, args)])


def test_a_secret_has_256_random_bits_and_says_what_it_is() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(secret.startswith("sp_") and len(secret) == 3 + 43 for secret in secrets)


def test_a_key_is_found_by_its_secret_alone() -> None:
    keys = [key("one", "a"), key("two", "b")]
    assert [find_key(keys, secret) for secret in ("a", "b", "c", "", keys[0].sha256)] == [
        *keys,
        None,
        None,
        None,
    ]


@pytest.mark.parametrize("secret", ["first", "middle", "last", "none of them"])
def test_every_stored_key_is_compared_in_constant_time_whichever_it_is(
    secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[str, str]] = []
    real = hmac.compare_digest

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr("service.api_keys.hmac.compare_digest", compare)
    keys = [key(name, name) for name in ("first", "middle", "last")]
    find_key(keys, secret)
    assert compared == [(one.sha256, hash_of(secret)) for one in keys]


def test_a_file_comes_back_as_it_was_written_and_is_its_owners_alone(file: Path) -> None:
    keys = (key("one", "a"), key("two", "b", scopes=("admin", "score"), requests_per_s=2.5))
    write_keys(file, keys)
    assert read_keys(file) == keys
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not is_open_to_others(file)
    file.chmod(0o444)
    write_keys(file, keys[:1])
    assert is_open_to_others(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sp_SECRET", "no JSON"),
        ('"sp_SECRET"', "need what"),
        ('{"keys": [{"name": "sp_SECRET"}]}', "keys/0/"),
        ({"sha256": "sp_SECRET"}, "keys/0/sha256"),
        ({"scopes": ["sp_SECRET"]}, "keys/0/scopes/0"),
        ({"scopes": []}, "keys/0/scopes"),
        ({"name": "a b"}, "keys/0/name"),
        ({"typo": "sp_SECRET"}, "keys/0/typo"),
        ({"requests_per_s": 0}, "keys/0/requests_per_s"),
        ({"tree_nodes_per_s": "sp_SECRET"}, "keys/0/tree_nodes_per_s"),
    ],
)
def test_a_broken_file_is_refused_with_the_place_and_without_its_content(
    file: Path, content: Any, message: str
) -> None:
    if isinstance(content, dict):
        entry = {"name": "a", "scopes": ["score"], "sha256": "0" * 64, "created": "2026-11-21"}
        content = json.dumps({"keys": [entry | content]})
    file.write_text(content, encoding="utf-8")
    with pytest.raises(KeyFileError, match=message) as caught:
        read_keys(file)
    assert "SECRET" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_names_are_unique(file: Path) -> None:
    entry = key("a", "a").model_dump(mode="json")
    file.write_text(json.dumps({"keys": [entry, entry]}), encoding="utf-8")
    with pytest.raises(KeyFileError, match="two keys have one name"):
        read_keys(file)


def test_a_file_that_cannot_be_read_or_written_says_so(file: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be read"):
        read_keys(file)
    with pytest.raises(KeyFileError, match="cannot be written"):
        write_keys(file / "below", ())


def test_changes_at_the_same_time_come_one_after_another(file: Path) -> None:
    has_read, may_write = threading.Event(), threading.Event()

    def slowly(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        has_read.set()
        assert may_write.wait(timeout=60)
        return (*keys, key("one", "a"))

    first = threading.Thread(target=change_keys, args=(file, slowly))
    second = threading.Thread(
        target=change_keys, args=(file, lambda keys: (*keys, key("two", "b")))
    )
    first.start()
    assert has_read.wait(timeout=60)
    second.start()
    second.join(timeout=0.2)
    assert second.is_alive()
    may_write.set()
    first.join(timeout=60)
    second.join(timeout=60)
    assert [one.name for one in read_keys(file)] == ["one", "two"]


def test_a_change_that_fails_leaves_the_file_and_frees_it(file: Path) -> None:
    write_keys(file, [key("one", "a")])

    def fails(_: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        raise KeyFileError("no")

    with pytest.raises(KeyFileError, match="no"):
        change_keys(file, fails)
    change_keys(file, lambda keys: (*keys, key("two", "b")))
    assert [one.name for one in read_keys(file)] == ["one", "two"]
    with pytest.raises(KeyFileError, match="cannot be written"):
        change_keys(file / "below", lambda keys: keys)


def test_new_prints_the_key_once_and_stores_its_hash(file: Path) -> None:
    made = run("new", "--name", "asr1", "--scope", "score", "--requests-per-s", "5", "--file", file)
    assert made.exit_code == 0, made.output
    secret = made.stdout.strip()
    assert "\n" not in secret
    content = file.read_text(encoding="utf-8")
    assert secret not in content
    assert secret not in made.stderr
    (stored,) = read_keys(file)
    assert (stored.name, stored.scopes, stored.requests_per_s) == ("asr1", ("score",), 5.0)
    assert find_key([stored], secret) == stored
    listed = run("list", "--file", file)
    assert "asr1" in listed.stdout
    assert secret not in listed.output
    assert stored.sha256 not in listed.output


def test_a_name_is_given_once_and_another_key_leaves_it_alone(file: Path) -> None:
    run("new", "--name", "one", "--file", file)
    again = run("new", "--name", "one", "--file", file)
    assert again.exit_code == 2
    assert "already" in again.stderr
    run("new", "--name", "two", "--scope", "admin", "--scope", "score", "--file", file)
    assert [(one.name, one.scopes) for one in read_keys(file)] == [
        ("one", ("score",)),
        ("two", ("admin", "score")),
    ]


def test_a_key_that_is_revoked_is_gone(file: Path) -> None:
    secret = run("new", "--name", "one", "--file", file).stdout.strip()
    run("new", "--name", "two", "--file", file)
    assert run("revoke", "--name", "one", "--file", file).exit_code == 0
    assert [one.name for one in read_keys(file)] == ["two"]
    assert find_key(read_keys(file), secret) is None
    unknown = run("revoke", "--name", "one", "--file", file)
    assert unknown.exit_code == 2
    assert "it has two" in unknown.stderr


@pytest.mark.parametrize(
    "args", [("--name", "a b"), ("--name", ""), ("--name", "a", "--scope", "root")]
)
def test_an_unusable_argument_exits_2(file: Path, args: tuple[str, ...]) -> None:
    assert run("new", *args, "--file", file).exit_code == 2
    assert not file.exists()


def test_the_file_may_come_from_the_environment(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("new", "--name", "a").exit_code == 2
    monkeypatch.setenv("SECONDPASS_API_KEYS_FILE", str(file))
    assert run("new", "--name", "a").exit_code == 0
    assert file.exists()


def test_a_key_that_cannot_be_shown_is_not_stored(file: Path) -> None:
    command = [sys.executable, "-m", "service", "api-key", "new", "--name", "asr1", "--file"]
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        ended = subprocess.run(
            [*command, file], check=False, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: standard output or a temporary file: No space left on device\n",
    )
    assert not file.exists()
