"""What `deftly data show` says about the instructions."""

from deftly.data.language.summary import MAX_READ, summarise


def test_verbs_nouns_and_attributes_are_counted_once_per_instruction():
    found = summarise(["pick up the red cup and put it on the red plate", "grab the blue cup", "grab the blue cup", "do not move"])
    assert (found.instructions, found.understood, found.examples) == (3, 2, ["do not move"])
    assert (found.words, found.longest) == (15, 12)
    assert found.verbs == {"pick": 2, "place": 1}
    assert found.nouns == {"cup": 2, "it": 1, "plate": 1}
    assert found.attributes == {"blue": 1, "red": 1}


def test_a_dataset_with_a_task_per_episode_is_read_in_part():
    assert summarise([f"pick up cup {number}" for number in range(3 * MAX_READ)]).instructions == MAX_READ
    assert summarise([]).instructions == 0
