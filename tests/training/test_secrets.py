"""No secret of a command line, of the environment or of a config is written down, and what is none stays as it was."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deftly.recipes import RECIPES
from deftly.training.secrets import publishable, sounds_secret, without_known, without_secrets

SECRETS = st.text(string.ascii_letters + string.digits + "-_.~+/=!$%^*()@:;,?&#'\"|\\<>{}[]`é ", min_size=8, max_size=40).map(
    lambda text: f"x{text}x"
)
NAMES = st.sampled_from((
    "token", "hub-token", "api-key", "api_key", "apiKey", "APIKEY", "accessToken", "password", "db-password", "passwd", "pass",
    "pwd", "secret", "client_secret", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "HF_TOKEN", "credentials", "auth",
    "authorization", "auth-token", "cookie", "jwt", "private-key", "signature", "sas-token",
))  # fmt: skip
PLAIN = st.sampled_from(
    ["deftly", "train", "imitate", "--out", "runs/x", "--small", "--data.path", "/data/keypoints", "my.py:recipe", "-v"]
)
SHAPES = {
    "flag and word": lambda name, secret: [f"--{name}", secret],
    "flag and words": lambda name, secret: [f"--{name}", "plain", secret],
    "one dash": lambda name, secret: [f"-{name}", secret],
    "flag with =": lambda name, secret: [f"--{name}={secret}"],
    "nested flag": lambda name, secret: [f"--training.tracker.{name}", secret],
    "assignment": lambda name, secret: [f"{name}={secret}"],
    "flag with an assignment": lambda name, secret: [f"--define={name}={secret}"],
    "-e": lambda name, secret: ["-e", f"{name}={secret}"],
    "-p": lambda name, secret: ["-p", secret],
    "-psecret": lambda name, secret: [f"-p{secret}"],
    "-u": lambda name, secret: ["-u", f"me:{secret}"],
    "header": lambda name, secret: ["--header", f"Authorization: Bearer {secret}"],
    "-H": lambda name, secret: ["-H", f"X-{name}: {secret}"],
    "a header by itself": lambda name, secret: [f"Authorization: Bearer {secret}"],
    "another header": lambda name, secret: [f"X-{name}:{secret}"],
    "JSON": lambda name, secret: [json.dumps({"a": 1, name: secret})],
    "one word": lambda name, secret: [f"curl --{name}={secret} https://host"],
    "query": lambda name, secret: [f"https://host/x?a=1&{name}={secret}&b=2"],
}  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SHAPES)), NAMES, SECRETS, st.lists(PLAIN, max_size=4), st.lists(PLAIN, max_size=4))
def test_no_secret_is_left_and_no_word_is_lost(shape: str, name: str, secret: str, before: list[str], after: list[str]) -> None:
    words = SHAPES[shape](name, secret)
    found = without_secrets([*before, *words, "--then", *after])
    assert len(found) == len(before) + len(words) + 1 + len(after)
    assert secret not in "\n".join(found)
    assert json.dumps(secret)[1:-1] not in "\n".join(found)
    assert found[: len(before)] == before
    assert found[len(before) + len(words) :] == ["--then", *after]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["https", "postgres", "s3", "ssh"]), SECRETS.filter(lambda text: " " not in text))
def test_the_login_of_an_address_is_hidden(scheme: str, secret: str) -> None:
    for text in (f"{scheme}://me:{secret}@host/x", f"{scheme}://{secret}@host", f"--url={scheme}://me:{secret}@host:80/x y"):
        assert secret not in without_secrets([text])[0]
        assert secret not in without_known(f"no answer from {text}, try again")
    if not set(secret) & set("/:@\"'=,;"):
        assert secret not in without_secrets([f"me:{secret}@host"])[0]


@pytest.mark.parametrize(
    "secret",
    [
        f"hf_{'a' * 34}",
        f"ghp_{'A1' * 18}",
        f"github_pat_{'a' * 30}",
        f"sk-{'a' * 40}",
        "AKIAABCDEFGHIJKLMNOP",
        "eyJhbGciOiJIUzI1NiJ9.e30.abc",
    ],
)
def test_a_token_that_shows_what_it_is_is_hidden_anywhere(secret: str) -> None:
    assert without_secrets(["--out", secret, f"runs/{secret}"]) == ["--out", "***", "runs/***"]


def test_what_the_environment_holds_is_hidden_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_HUB_TOKEN", "plain-words")
    monkeypatch.setenv("MY_HUB_NAME", "other-words")
    monkeypatch.setenv("SHORT_KEY", "run")
    assert without_secrets(["--x", "plain-words", "other-words", "runs"]) == ["--x", "***", "other-words", "runs"]


def leaves(values: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield from leaves(value, f"{path}{name}.") if isinstance(value, dict) and value else [f"{path}{name}"]


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_no_flag_of_ours_is_taken_for_a_secret(recipe: str) -> None:
    run = RECIPES[recipe](True).to_dict()
    words = [word for name in leaves(run) for word in (f"--{name.replace('_', '-')}", "5")]
    assert without_secrets(["deftly", "train", recipe, *words]) == ["deftly", "train", recipe, *words]
    assert publishable(run) == run
    for name in ("tokenizer", "keypoints", "monkeys", "compass", "author", "patience", "design"):
        assert not sounds_secret(name)


def test_what_is_published_of_a_config_has_no_secrets() -> None:
    given = {"hub_token": "abc", "url": "https://me:abc@host", "list": ["Bearer abc", 3], "tokens": 16, "key": None, "name": "x"}
    assert publishable(given) == {
        "hub_token": "***", "url": "https://***@host", "list": ["Bearer ***", 3], "tokens": 16, "key": None, "name": "x",
    }  # fmt: skip


def test_the_working_directory_is_no_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key.json").touch()
    for name, value in (("PWD", tmp_path), ("OLDPWD", tmp_path.parent), ("CLOUD_CREDENTIALS", tmp_path / "key.json")):
        monkeypatch.setenv(name, str(value))
    words = ["deftly", "train", "imitate", "--data.path", f"{tmp_path}/data"]
    assert without_secrets(words) == words
    assert publishable({"data": {"path": f"{tmp_path}/key.json"}}) == {"data": {"path": f"{tmp_path}/key.json"}}
