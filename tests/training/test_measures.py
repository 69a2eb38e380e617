"""Action accuracy and language alignment: what they are, on whom, and that nobody notices that they were measured."""

import pytest
import torch
from torch import nn

from batches import build_policy, random_batch
from deftly.contract import Window
from deftly.models.heads import FlowMatchingConfig
from deftly.models.policy import PolicyConfig
from deftly.objectives.imitation import Imitation
from deftly.training.measures import Measures, MeasuresConfig
from deftly.training.stretch import Stretch
from deftly.training.validation import validate
from deftly.types import Batch, Clock, Features, Policy
from training.toys import make_trainer, small_config

END = Clock(5, 5)


class Obedient(Policy):
    """Does what the first word says: word n is action n / 10 everywhere. `hears` is whether it listens; it is off by `error`."""

    chunk, action_dim = 6, 3

    def __init__(self, hears=True, error=0.0):
        super().__init__()
        self.hears, self.error = hears, error

    def encode(self, batch: Batch) -> Features:
        word = batch.text.ids[:, :1].float() / 10 * self.hears
        return Features(tokens=word[:, None], is_pad=torch.zeros(len(word), 1, dtype=torch.bool), pooled=word)

    def loss(self, features, batch, clock):
        return (self.sample(features, batch.key) - batch.actions).abs()

    def sample(self, features, key):
        return features.pooled[:, :, None].expand(-1, 6, 3) + self.error


def demonstrated(words, **changes) -> Batch:
    """Samples whose first word is `words` and whose actions are what it says."""
    batch = random_batch(len(words), Window(frames=2, chunk=6, past_actions=True))
    batch.text.ids[:] = 0
    batch.text.ids[:, 0] = torch.tensor(words)
    batch.actions = (batch.text.ids[:, :1, None] / 10.0).expand(-1, 6, 3).clone()
    return batch


def measured(policy, *batches, **changes):
    _, terms = validate(
        Imitation(policy), batches, 5, torch.no_grad(), torch.device("cpu"), measures=Measures(MeasuresConfig(**changes), Imitation(policy))
    )
    return {name: value for name, value in terms.items() if name != "action"}


def test_accuracy_is_the_share_of_valid_elements_within_tolerance():
    batch = demonstrated([1, 2, 3, 4])
    assert measured(Obedient(), batch)["action_accuracy"] == 1
    assert measured(Obedient(error=0.2), batch)["action_accuracy"] == 0
    assert measured(Obedient(error=0.2), batch, action_tolerance=0.3)["action_accuracy"] == 1
    batch.actions[0] += 1
    batch.actions[1, :3] += 1
    assert measured(Obedient(), batch)["action_accuracy"] == pytest.approx(2.5 / 4)
    batch.action_is_pad[0] = True
    batch.action_is_pad[1, :2] = True
    assert measured(Obedient(), batch)["action_accuracy"] == pytest.approx((1 / 2 * 6 + 12) / 16), "padding counts for nothing"
    batch.weight[1] = 0
    assert measured(Obedient(), batch)["action_accuracy"] == 1, "neither does a sample without weight"


def test_alignment_is_what_another_sentence_costs():
    batch = demonstrated([1, 1, 5, 5])  # the other sentence is always 4 words away
    assert measured(Obedient(), batch)["language_alignment"] == pytest.approx(0.4)
    assert measured(Obedient(hears=False), batch)["language_alignment"] == 0


def test_where_there_is_one_sentence_alignment_is_not_measured():
    assert set(measured(Obedient(), demonstrated([3, 3, 3]))) == {"action_accuracy"}


def test_a_batch_of_one_sentence_hears_those_of_the_batches_before():
    assert measured(Obedient(), demonstrated([1, 1]), demonstrated([5, 5]), every_batch=1)["language_alignment"] == pytest.approx(0.4)


def test_every_fourth_batch_is_measured_and_what_is_off_is_not():
    class Counting(Obedient):
        samples = losses = 0

        def sample(self, features, key):
            Counting.samples += 1
            return super().sample(features, key)

    batches = [demonstrated([1, 2])] * 9
    alone = measured(Counting(), *batches, language_alignment=False)
    assert (set(alone), Counting.samples) == ({"action_accuracy"}, 3 + 9)  # nine are for the loss
    assert measured(Counting(), *batches, action_tolerance=None, language_alignment=False) == {}


def test_an_objective_that_reads_no_text_is_not_asked_to_listen():
    class Deaf(Imitation):
        reads = ("state", "actions", "action_is_pad")

    found = Measures(MeasuresConfig(), Deaf(Obedient()))(demonstrated([1, 5]), END, Stretch(2, 0, 2))
    assert set(found) == {"action_accuracy"}


def test_a_policy_of_another_kind_is_left_alone(tmp_path):
    trainer = make_trainer(tmp_path, config=small_config(steps=2))
    assert not isinstance(trainer.objective.policy, Policy)
    assert isinstance(trainer.objective.policy, nn.Module)
    assert Measures(MeasuresConfig(), trainer.objective)(demonstrated([1, 2]), END, Stretch(2, 0, 2)) == {}


@pytest.mark.parametrize("head", [{}, {"head": FlowMatchingConfig(width=16, blocks=1, euler_steps=2)}])
def test_a_real_policy_gives_the_same_numbers_twice_and_no_generator_moves(head):
    objective = Imitation(build_policy(PolicyConfig(width=16, **head)))
    batches = [random_batch(4, seed=seed) for seed in range(2)]

    def once():
        measures = Measures(MeasuresConfig(every_batch=1, action_tolerance=0.5), objective)
        return validate(objective, batches, 5, torch.no_grad(), torch.device("cpu"), measures=measures)

    before = torch.get_rng_state()
    loss, terms = once()
    assert torch.equal(torch.get_rng_state(), before)
    assert (loss, terms) == once()
    assert set(terms) == {"action", "action_accuracy", "language_alignment"}
    assert loss == validate(objective, batches, 5, torch.no_grad(), torch.device("cpu"))[0]
