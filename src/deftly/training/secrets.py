"""What must not be written down with a run: the words of a command line without its passwords, keys and tokens.

A run directory is copied, sent and published. deftly itself takes no secret on its command line; scripts of others, which call it, may.
Where it is not certain, more is hidden than need be.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"
WORDS = frozenset(
    (
        "apikey", "auth", "authorization", "bearer", "cookie", "cookies", "credential", "credentials", "dsn", "jwt", "key", "keys", "pass",
        "passphrase", "passwd", "password", "passwords", "pat", "private", "pw", "pwd", "sas", "secret", "secrets", "sig", "signature",
        "token", "tokens", "userpwd",
    )
)  # fmt: skip
ENDINGS = ("apikey", "accesskey", "secretkey", "token", "secret", "password", "passwd", "passphrase", "credentials", "authorization")
SHORT = ("-p", "-P", "-u", "-H", "--header", "--headers", "--user", "--proxy-user", "--env")  # of mysql, curl, docker
NAME = r"[A-Za-z0-9_.\-]+"
ASSIGNED = re.compile(rf"(?P<name>{NAME})(?P<sign>[\"']?\s*[=:]\s*)(?P<value>\S.*)", re.S)
SCHEME = re.compile(r"(?i)\b(bearer|basic|digest|negotiate|apikey)\s+\S+")
LOGIN = re.compile(
    r"(?<=://)\S*@|(?<![^\s\"'=,;])[^\s:/@\"'=,;]+:[^\s@/][^\s@]*@"
)  # a URL's, which may hold @ and /; that of user:password@host
KNOWN = re.compile(  # as their makers let them begin, so that they are found
    r"\b(?:hf_|gh[opsu]_|ghr_|github_pat_|glpat-|sk-|xox[abeprs]-|AKIA|ASIA|AIza|ya29\.|eyJ|npm_|pypi-|dckr_pat_)[A-Za-z0-9_\-.=+/]{8,}"
)
MIN_LENGTH = 6  # of a secret of the environment: shorter ones would hide letters of other words


def sounds_secret(name: str) -> bool:
    """Whether what has this name is nobody's business: `--hub-token`, `WANDB_API_KEY`, `apiKey`; not `keypoints` nor `tokenizer`."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return any(part.lower() in WORDS for part in parts) or re.sub(r"[^a-z]", "", name.lower()).endswith(ENDINGS)


def without_secrets(command: Sequence[str]) -> list[str]:
    """The words of a command line, as many as there are, with `***` for what may be a secret: what follows a flag that sounds so, up to the
    next flag; what is assigned to a name that does; what comes before the host of an address; and what `without_known` knows."""
    words, hide = [], False
    for word in command:
        is_flag = re.match(r"--?[A-Za-z]", word) is not None and not (hide and not word.startswith("--"))
        name, equals, _ = word.partition("=")
        if not is_flag:
            words.append(HIDDEN if hide else _without_assigned(without_known(word)))
            continue
        hide = not equals and (word in SHORT or sounds_secret(word))
        if equals and (name in SHORT or sounds_secret(name)):
            word = f"{name}={HIDDEN}"
        elif re.fullmatch(r"-[pPuH][^-].*", word, re.S):  # -psecret
            word = word[:2] + HIDDEN
        words.append(_without_assigned(without_known(word)))
    return words


def _without_assigned(word: str) -> str:
    """A word up to the first name that sounds secret; what is assigned to it, and what follows, is hidden."""
    if re.fullmatch(r"\S+\.py:\w+", word):  # a recipe of the user's own
        return word
    at = 0
    while found := ASSIGNED.search(word, at):
        if sounds_secret(found["name"]):
            return word[: found.start("value")] + HIDDEN
        at = found.end("name")
    return word


def without_known(text: str) -> str:
    """Any text without logins of addresses, tokens that show what they are, and values of this process' environment that sound secret."""
    for name, value in os.environ.items():
        # PWD sounds like a password, and a path to a key is none: hiding them would hide where everything lies
        if len(value) >= MIN_LENGTH and sounds_secret(name) and not os.path.isdir(value) and not os.path.isfile(value):
            text = text.replace(value, HIDDEN)
    text = LOGIN.sub(f"{HIDDEN}@", text)
    return KNOWN.sub(HIDDEN, SCHEME.sub(lambda found: f"{found[1]} {HIDDEN}", text))


def publishable(values: Any) -> Any:
    """Plain data without secrets: what goes where others read it."""
    if isinstance(values, Mapping):
        return {
            name: HIDDEN if isinstance(value, str) and sounds_secret(str(name)) else publishable(value) for name, value in values.items()
        }
    if isinstance(values, list | tuple):
        return [publishable(value) for value in values]
    return without_known(values) if isinstance(values, str) else values
