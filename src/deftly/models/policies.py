"""Which policies there are. To add one: a `Config` with `kind` and `build`, a `Policy` beside it, its name in the union below."""

from __future__ import annotations

from typing import Annotated, Any

import pydantic

from deftly.models.act import ACTConfig
from deftly.models.policy import PolicyConfig
from deftly.types import UsageError


def kind_of(policy: Any) -> Any:
    """The tag of a policy's config or of its plain data, which had none while there was one kind."""
    return policy.get("kind", "film") if isinstance(policy, dict) else getattr(policy, "kind", None)


AnyPolicyConfig = Annotated[
    Annotated[PolicyConfig, pydantic.Tag("film")] | Annotated[ACTConfig, pydantic.Tag("act")], pydantic.Discriminator(kind_of)
]


def parse_policy(values: dict[str, Any], where: str = "policy.json") -> PolicyConfig | ACTConfig:
    """The config of a saved policy; `UsageError` in one line when it is not one."""
    for config in (PolicyConfig, ACTConfig):
        if kind_of(values) == config.model_fields["kind"].default:
            return config.parse(values, where)
    raise UsageError(f"{where}: no policy of kind {str(kind_of(values))[:80]!r}; there are film and act")
