"""Which policies there are. To add one: a `Config` with `kind` and `build`, a `Policy` beside it, its name in the union below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import pydantic

from deftly.config import Config
from deftly.models.act import ACTConfig
from deftly.models.policy import PolicyConfig
from deftly.own_code import OrOwn, find
from deftly.types import UsageError


def kind_of(policy: Any) -> Any:
    """The tag of a policy's config or of its plain data, which had none while there was one kind."""
    return policy.get("kind", "film") if isinstance(policy, dict) else getattr(policy, "kind", None)


TAKES = ("contract", "vocabulary")
AnyPolicyConfig = Annotated[
    Annotated[PolicyConfig, pydantic.Tag("film")] | Annotated[ACTConfig, pydantic.Tag("act")],
    pydantic.Discriminator(kind_of),
    OrOwn(TAKES),
]


def parse_policy(values: dict[str, Any], where: str = "policy.json", own: Sequence[type[Config]] = ()) -> PolicyConfig | ACTConfig:
    """The config of a saved policy, of ours or of the user's `own`; `UsageError` in one line when it is not one."""
    kind = kind_of(values)
    for config in (PolicyConfig, ACTConfig):
        if kind == config.model_fields["kind"].default:
            return config.parse(values, where, own)
    found = find(kind, TAKES, own)
    if found is None:  # guard: models.policies.own
        known = f"no policy of kind {str(kind)[:80]!r}; there are film and act"
        raise UsageError(f"{where}: {known}; if it is of your own code, name the file: --code my.py, or own=[ITS_CONFIG] in Python")
    return found.parse(values, where, own)  # pyright: ignore[reportReturnType]  (what it takes, and gives, is what theirs do)
