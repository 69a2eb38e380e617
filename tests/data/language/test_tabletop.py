"""The demo world's own sentences, in other words, still mean the same object of the same scene."""

from deftly.data.language import LanguageConfig, parse
from deftly.randomness import generator
from deftly.sim.language import TEMPLATES, resolve, sentence
from deftly.sim.scene import COLOURS, TYPES, sample_scene

ALL = [f"{template.format(object=f'{colour} {kind}')}" for template in TEMPLATES for colour in COLOURS for kind in TYPES]
LOUD = LanguageConfig(probability=1, synonyms=0.5, paraphrases=0.5, insertions=0.5, typos=0, variants=4096)


def test_every_sentence_of_the_world_is_understood():
    for text in ALL:
        meaning = parse(text)
        assert meaning is not None, text
        assert len(meaning.clauses) == 1
        assert len(meaning.attributes) == 1


def test_every_wording_has_the_same_referent_and_fits_the_demo():
    augmenter = LOUD.build(ALL, max_words=16)
    for number in range(len(ALL)):
        for key in range(4):
            scene = sample_scene(generator("test/scene", 4 * number + key), (2, 4))
            for index, item in enumerate(scene.objects):
                original = sentence(item, number)
                wording = augmenter(original, key)
                assert resolve(wording, scene) == resolve(original, scene) == index, wording


def test_the_worlds_own_words_are_never_left():
    augmenter = LOUD.build(ALL)
    scene = sample_scene(generator("test/scene", 1), (2, 2))
    wordings = {augmenter(sentence(scene.objects[0], number), key) for number in range(len(TEMPLATES)) for key in range(60)}
    assert len(wordings) > 200
    assert {resolve(wording, scene) for wording in wordings} == {0}
