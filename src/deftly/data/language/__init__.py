"""Instructions in other words: read, reworded and mirrored without changing what they ask for.

`grammar` reads a sentence into what it means, `bank` holds words and phrases that may stand for each other, `augment` rewords by them,
`sides` exchanges left and right, `spelling` makes and mends typing errors. What does not belong here: what a word looks like in a scene
(`deftly.sim.language`).
"""

from deftly.data.language.augment import Augmenter, LanguageConfig
from deftly.data.language.bank import Bank
from deftly.data.language.grammar import parse
from deftly.data.language.meaning import Clause, Instruction, Relation, Thing
from deftly.data.language.sides import mirror_words

__all__ = ["Augmenter", "Bank", "Clause", "Instruction", "LanguageConfig", "Relation", "Thing", "mirror_words", "parse"]
