"""What is saved of an objective, and how strictly it is put back."""

import pytest
import torch
from torch import nn

from deftly.training.state import Buffers, check_fit, check_not_saved, copies, load_strictly, policy_state, saved_tensors
from deftly.types import DataError, UsageError
from guards import guards
from training.toys import ToyObjective, ToyPolicy


class WithTeacher(ToyObjective):
    not_saved = ("teacher",)

    def __init__(self, frozen=True):
        super().__init__()
        self.teacher = ToyPolicy().requires_grad_(not frozen)
        self.teacherly = nn.Linear(2, 2)  # a name that only begins like the one that is left out


def test_what_is_not_saved_is_left_out_and_nothing_else():
    names = set(saved_tensors(WithTeacher(), WithTeacher.not_saved))
    assert not any(name.startswith("teacher.") for name in names)
    assert {"teacherly.weight", "policy.first.weight", "policy.batch_norm.running_mean"} <= names


@guards("training.state.not_saved_learns")
def test_not_saved_must_name_frozen_sub_modules():
    check_not_saved(WithTeacher())
    with pytest.raises(UsageError, match=r"teacher\.first\.weight is trainable"):
        check_not_saved(WithTeacher(frozen=False))
    wrong = ToyObjective()
    wrong.not_saved = ("ghost",)  # type: ignore[misc]
    with pytest.raises(UsageError, match="'ghost', which is no sub-module"):
        check_not_saved(wrong)


def test_loading_is_strict():
    source, target = ToyObjective(), ToyObjective()
    tensors = copies(saved_tensors(source, ()))
    load_strictly(target, (), tensors, "here")
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True))
    name = "policy.first.weight"
    less = {key: value for key, value in tensors.items() if key != name}
    for broken, message in (
        (less, f"here: lacks '{name}'"),
        ({**tensors, "policy.extra": torch.zeros(1)}, "has an unknown 'policy.extra'"),
        ({**tensors, name: torch.zeros(2)}, "has shape"),
        ({**tensors, name: torch.full_like(tensors[name], torch.nan)}, "non-finite"),
    ):
        before = {key: value.clone() for key, value in target.state_dict().items()}
        with pytest.raises(DataError, match=message) as caught:
            load_strictly(target, (), broken, "here")
        assert "\n" not in str(caught.value)
        assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())  # refused before anything is copied


def test_check_fit_counts_what_it_does_not_name():
    with pytest.raises(DataError, match=r"lacks 'a' \(\+1\)"):
        check_fit({"a": torch.zeros(1), "b": torch.zeros(1)}, {}, "here")


def test_tensors_for_a_file_share_no_memory():
    base = torch.arange(6.0)
    made = copies({"a": base, "b": base, "part": base[2:4], "turned": base.reshape(2, 3).T})
    assert torch.equal(made["a"], made["b"])
    assert len({tensor.data_ptr() for tensor in made.values()}) == 4
    assert all(tensor.is_contiguous() for tensor in made.values())
    assert torch.equal(made["turned"], base.reshape(2, 3).T)


def test_policy_state_has_the_policys_names_and_dtypes():
    objective = ToyObjective()
    wide = {name: tensor.double() for name, tensor in objective.state_dict().items()}
    state = policy_state(objective, {**wide, "sign.weight": torch.zeros(1)})
    assert state.keys() == objective.policy.state_dict().keys()
    assert state["first.weight"].dtype == torch.float32


def test_buffers_are_looked_up_where_they_live():
    objective = ToyObjective()
    buffers = Buffers(objective, ())
    assert "policy.batch_norm.running_mean" in buffers.names
    objective.policy.batch_norm.running_mean = torch.full((16,), 3.0)  # type: ignore[union-attr]
    assert torch.equal(buffers.current()[buffers.names.index("policy.batch_norm.running_mean")], torch.full((16,), 3.0))
