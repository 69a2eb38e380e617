import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import deftly
from deftly import storage
from deftly.agent import FILES, Agent, find_policy, load, load_weights, save_policy
from deftly.contract import Camera, Embodiment, Window
from deftly.data.encoding import ObservationEncoder
from deftly.data.prepared import TrainingData
from deftly.data.source import DataConfig
from deftly.models.heads import FlowMatchingConfig
from deftly.models.policy import PolicyConfig
from deftly.types import Batch, Clock, DataError, Features, Observation, Policy, UsageError
from small_data import recorded, robot, write_dataset

WINDOW = Window(frames=3, chunk=4, past_actions=True)
CONFIG = PolicyConfig(width=16, depth=1, head=FlowMatchingConfig(width=8, blocks=1, euler_steps=2))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TrainingData:
    root = write_dataset(tmp_path_factory.mktemp("agent") / "data", embodiment=robot(24, 32))  # not square: it is resized and padded
    config = DataConfig(path=root, image_size=16, batch_size=4, window=WINDOW, validation_fraction=0.25, text_length=8)
    return config.build(seed=0, device="cpu", executed_steps=2)


def build_policy(data: TrainingData) -> Policy:
    torch.manual_seed(0)
    return CONFIG.build(data.contract, data.tokenizer.size)


@pytest.fixture(scope="module")
def saved(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "policy"
    folder.mkdir()
    save_policy(folder, data.contract, data.statistics, data.tokenizer, CONFIG, build_policy(data).state_dict(), {"step": 7})
    return folder


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "policy"))


INPUTS = (
    "state",
    "state_dim_is_pad",
    "past_actions",
    "past_action_is_pad",
    "observation_is_pad",
    "action_dim_is_pad",
    "embodiment",
    "domain",
)


def assert_same_inputs(one: Batch, two: Batch, i: int) -> None:
    for name in INPUTS:
        assert torch.equal(getattr(one, name)[0], getattr(two, name)[i]), name
    for camera in two.images:
        assert torch.equal(one.images[camera][0], two.images[camera][i]), camera
        assert one.images[camera][0].stride() == two.images[camera][i].stride()
        assert bool(one.camera_is_missing[camera][0]) == bool(two.camera_is_missing[camera][i])
    assert torch.equal(one.text.ids[0], two.text.ids[i])
    assert torch.equal(one.text.is_pad[0], two.text.is_pad[i])


def test_a_frame_through_the_agent_equals_the_loaders_tensors_bit_for_bit(data, saved):
    agent = load(saved)
    assert data.validation is not None
    checked = 0
    for loader in (data.validation, data.train):
        for batch in loader.batches():
            for i, (episode, frame) in enumerate(zip(batch.episode.tolist(), batch.frame.tolist(), strict=True)):
                observations, actions = recorded(data, episode)
                past = [None, *actions][: frame + 1]
                assert_same_inputs(agent.encode(observations[: frame + 1], past), batch, i)
                checked += 1
    assert checked == data.dataset.num_frames


def test_observations_and_past_actions_come_in_pairs(data, saved):
    agent = load(saved)
    observations, actions = recorded(data, 0)
    for wrong in ((observations, actions[:-1]), ([], []), ([], None)):
        with pytest.raises(ValueError, match="one action for each"):
            agent.encode(*wrong)
    assert agent.encode(observations[:1]).past_action_is_pad.all()


class Echo(Policy):
    """Plays a recorded episode (normalised), and keeps what it was shown."""

    def __init__(self, encoder: ObservationEncoder, actions: list[np.ndarray]) -> None:
        super().__init__()
        self.chunk, self.action_dim = WINDOW.chunk, len(actions[0])
        self.actions = torch.from_numpy(encoder.action.normalize(np.stack(actions)))
        self.shown: list[Batch] = []

    def encode(self, batch: Batch) -> Features:
        self.shown.append(batch)
        return Features(tokens=batch.state, is_pad=batch.observation_is_pad, pooled=batch.state[:, -1])

    def loss(self, features: Features, batch: Batch, clock: Clock) -> torch.Tensor:
        raise NotImplementedError

    def sample(self, features: Features, key: torch.Tensor) -> torch.Tensor:
        start = 2 * (len(self.shown) - 1)  # two executed steps per inference
        return self.actions[torch.arange(start, start + self.chunk).clamp(max=len(self.actions) - 1)][None]


def test_acting_shows_the_policy_what_training_showed_it(data):
    observations, actions = recorded(data, 2)
    actions = [action.clip(-3, 3) for action in actions]
    policy = Echo(data.encoder, actions)
    agent = Agent(data.contract, data.encoder, policy)
    agent.reset(1)
    played = []
    for observation in observations:
        for image in observation["images"].values():
            image.flags.writeable = True
        played.append(agent.act(observation))
        for image in observation["images"].values():
            image[:] = 0  # a world that reuses its arrays
    assert np.allclose(played, actions, atol=1e-5), "two steps of a chunk, then the next"
    assert len(policy.shown) == math.ceil(len(observations) / 2)
    fresh, _ = recorded(data, 2)
    for number, batch in enumerate(policy.shown):
        now = 2 * number
        wanted = agent.encode(fresh[: now + 1], [None, *played][: now + 1])
        assert_same_inputs(batch, wanted, 0)


def test_the_same_key_gives_the_same_episode_and_another_key_another(data, saved):
    agent = deftly.load(saved)
    observations, _ = recorded(data, 0)

    def play(key: int) -> np.ndarray:
        agent.reset(key)
        return np.stack([agent.act(observation) for observation in observations])

    first = play(1)
    assert first.dtype == np.float32
    assert np.array_equal(first, play(1))
    assert not np.array_equal(first, play(2))
    assert not agent.policy.training


def test_planning_is_what_acting_would_start_on_and_changes_nothing(data, saved):
    agent = load(saved)
    observations, _ = recorded(data, 0)
    agent.reset(5)
    plan = agent.plan(observations[0])
    assert plan.shape == (4, 4)
    assert np.array_equal(plan, agent.plan(observations[0]))
    assert np.array_equal(plan[0], agent.act(observations[0]))
    assert np.array_equal(plan[1], agent.act(observations[1]))


def test_actions_stay_within_the_limits_and_clipping_is_counted(data):
    wild = [np.full(4, 50, np.float32)] * 9
    agent = Agent(data.contract, data.encoder, Echo(data.encoder, wild))
    observations, _ = recorded(data, 2)
    agent.reset(0)
    assert (agent.act(observations[0]) == 3).all()
    agent.act(observations[1])
    assert agent.clipped == 2
    assert (agent.plan(observations[0]) == 3).all()
    assert agent.clipped == 2


def test_an_output_that_is_not_finite_never_reaches_the_robot(data):
    agent = Agent(data.contract, data.encoder, Echo(data.encoder, [np.full(4, np.nan, np.float32)]))
    with pytest.raises(DataError, match="output is not finite"):
        agent.act(recorded(data, 0)[0][0])


def test_an_instruction_that_would_be_cut_is_refused(data, saved):
    agent = load(saved)
    observation = recorded(data, 0)[0][0]
    observation["instruction"] = "please " * agent.contract.text_length + "grab the red cup"
    with pytest.raises(DataError, match="say it in fewer"):
        agent.act(observation)


def test_an_observation_of_another_robot_is_refused(data, saved):
    agent = load(saved)
    observation = recorded(data, 0)[0][0]
    observation["images"] = {**observation["images"], "head": np.zeros((24, 24, 3), np.uint8)}
    with pytest.raises(DataError, match="'head' is 24 x 24 pixels"):
        agent.act(observation)
    observation = recorded(data, 0)[0][0]
    with pytest.raises(DataError, match="state has shape"):
        agent.plan(Observation(images=observation["images"], state=np.zeros(3, np.float32), instruction="x"))


def change(embodiment: Embodiment, part: str, **changes) -> Embodiment:
    return embodiment.replace(**{part: getattr(embodiment, part).replace(**changes)})


def test_check_names_what_differs_and_lets_pass_what_does_not_matter(data, saved):
    agent = load(saved)
    own = agent.embodiment
    more = (*own.cameras, Camera(name="rear", height=8, width=8))
    agent.check(own.replace(name="another", cameras=more))
    names = own.state.names
    for other, message in (
        (own.replace(rate_hz=20.0), r"rate_hz: expected 10\.0, found 20\.0"),
        (own.replace(action_kind="joint_target"), 'action_kind: expected "end_effector_target"'),
        (own.replace(cameras=own.cameras[:1]), r"cameras\.wrist: .* found null"),
        (own.replace(cameras=(own.cameras[0].replace(height=48), own.cameras[1])), r"cameras\.head\.height: expected 24, found 48"),
        (change(own, "state", units=("deg",) * 5), r"state\.units\[0\]: expected \"rad\", found \"deg\".*\(\+2 more\)"),
        (change(own, "state", names=(names[1], names[0], *names[2:])), r"state\.names\[0\]"),
        (change(own, "action", units=("mm",) * 4), r"action\.units"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            agent.check(other)
        assert "\n" not in str(caught.value)


def test_a_policy_is_found_in_a_run_its_best_before_its_last(saved, tmp_path):
    run = tmp_path / "run"
    for step in ("step-00000010", "step-00000020"):
        shutil.copytree(saved, run / "checkpoints" / step / "policy")
    with pytest.raises(UsageError, match="holds no policy"):
        find_policy(run)
    (run / "checkpoints" / "last").write_text("step-00000020\n")
    assert find_policy(run) == run / "checkpoints" / "step-00000020" / "policy"
    (run / "checkpoints" / "best").write_text("step-00000010\n")
    assert find_policy(run) == run / "checkpoints" / "step-00000010" / "policy"
    assert find_policy(run / "checkpoints" / "step-00000020") == run / "checkpoints" / "step-00000020" / "policy"
    assert find_policy(saved) == saved
    for pointer in ("../../elsewhere", "/etc", "step-00000099"):
        (run / "checkpoints" / "best").write_text(pointer)
        with pytest.raises(DataError):
            find_policy(run)
    with pytest.raises(UsageError, match="no such directory"):
        find_policy(tmp_path / "nothing")


def test_everything_is_saved_and_the_manifest_says_so(saved):
    manifest = storage.verify(saved)
    assert set(manifest["files"]) == set(FILES)
    assert manifest["format_version"] == 1
    assert manifest["step"] == 7


@pytest.mark.parametrize("name", FILES)
def test_a_changed_or_missing_file_is_refused_by_name(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(bytes(data))
    with pytest.raises(DataError, match=rf"{name}.*sha256"):
        load(copy)
    (copy / name).unlink()
    with pytest.raises(UsageError, match=rf"{name}|holds no policy"):
        load(copy)


def rewrite(folder: Path, name: str, change) -> None:
    """Change a JSON file and commit the folder again, as somebody with bad intent or a newer version would."""
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))
    about = storage.read_json(folder / "manifest.json")
    storage.write_manifest(folder, {key: value for key, value in about.items() if key != "files"})


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("contract.json", lambda v: v.update(image_sise=3), "unknown key 'image_sise'; did you mean 'image_size'"),
        ("contract.json", lambda v: v.update(format_version=9), "contract format 9"),
        ("contract.json", lambda v: v.update(image_size="large"), "image_size"),
        ("policy.json", lambda v: v.update(widht=3), "unknown key 'widht'; did you mean 'width'"),
        ("policy.json", lambda v: v["vision"].update(widths=[8] * 12), r"policy\.json: cannot be built"),
        ("policy.json", lambda v: v.update(width=32), r"model\.safetensors: tensor .* is torch\.float32 .*, expected"),
        ("policy.json", lambda v: v.update(depth=3), "is missing"),
        ("stats.json", lambda v: v["action"]["q99"].append(1.0), "set of statistics is not the contract's"),
        ("stats.json", lambda v: v.update(action=[1]), "not statistics"),
        ("tokenizer.json", lambda v: v["model"]["vocab"].update(zebra=len(v["model"]["vocab"])), "tokenizer is not the contract's"),
    ],
)
def test_a_policy_whose_parts_contradict_each_other_is_refused_in_one_line(copy, name, damage, message):
    rewrite(copy, name, damage)
    with pytest.raises(DataError, match=message) as caught:
        load(copy)
    assert "\n" not in str(caught.value)


def test_another_format_or_an_unlisted_file_is_refused(copy):
    manifest = storage.read_json(copy / "manifest.json")
    storage.write_json(copy / "manifest.json", {**manifest, "format_version": 2})
    with pytest.raises(DataError, match="policy format 2, this deftly reads 1"):
        load(copy)
    del manifest["files"]["stats.json"]
    storage.write_json(copy / "manifest.json", manifest)
    with pytest.raises(DataError, match=r"stats\.json: not listed"):
        load(copy)


def test_weights_must_be_exactly_the_policys_and_finite(data, copy):
    path = copy / "model.safetensors"
    good = load_file(path)
    policy = build_policy(data)
    load_weights(policy, path)
    assert all(torch.equal(tensor, good[name]) for name, tensor in policy.state_dict().items())
    name = "trunk.0.weight"
    for tensors, message in (
        ({key: value for key, value in good.items() if key != name}, rf"'{name}' is missing"),
        ({**good, "extra": torch.zeros(1)}, "'extra' is unknown"),
        ({**good, name: good[name].half()}, r"float16 .*expected torch\.float32"),
        ({**good, name: good[name][:, :-1].contiguous()}, rf"'{name}' is torch\.float32"),
        ({**good, name: torch.full_like(good[name], math.nan)}, rf"'{name}' is not finite"),
    ):
        save_file(tensors, path)
        with pytest.raises(DataError, match=message):
            load_weights(build_policy(data), path)
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(DataError, match="not a safetensors file"):
        load_weights(policy, path)
