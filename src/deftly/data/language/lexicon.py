"""The words of instructions: closed classes that the grammar is made of, common nouns, and both compiled with a bank.

Nouns are an open class: a word that is nowhere here is a noun. Those that are listed are known not to be typing errors.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deftly.data.language.bank import OBJECT, Bank
from deftly.data.language.contrasts import COLOURS


def listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _phrases(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(phrase.split()) for phrase in text.split(","))


ARTICLES = frozenset({"a", "an", "the"})
# They stand where an article would, and say which or how many: never left out.
DETERMINERS = listed("all both each every another other any some this that these those your my its his her their")
NUMBERS = listed("one two three four five six seven eight nine ten")
PRONOUNS = listed("it them this that these those one ones everything something itself")
POSITIONS = listed("left right top bottom upper lower middle center centre central front back rear leftmost rightmost")
ATTRIBUTES = (
    POSITIONS
    | COLOURS
    | listed("""
    big bigger biggest bright cardboard ceramic circular clean clear closed closest cold colored coloured cooked cotton curved
    cylindrical dark deep different dirty dry empty farthest first flat fourth fresh full furthest glass half hard heavy hexagonal
    high horizontal hot huge large larger largest last leather light little long low medium metal metallic narrow nearest new next old
    open opposite oval pale plastic raw rectangular remaining ripe round rubber same second shallow sharp short shorter shortest small
    smaller smallest soft square stainless steel striped tall taller tallest thick thin third tiny translucent transparent triangular
    vertical warm wet wide wooden woolen
    """)
)
# Where something goes or how it ends up, without a noun.
DIRECTIONS = listed("""
    up down forward forwards backward backwards upward upwards downward downwards inward inwards outward outwards sideways upright
    vertically horizontally diagonally clockwise counterclockwise anticlockwise counter-clockwise anti-clockwise leftward leftwards
    rightward rightwards open closed shut over away back out in off on apart together around aside inside outside straight halfway
    again once twice fully completely slightly slowly quickly firmly partially flat here there left right half-way upside-down
    """)
DIRECTION_PHRASES = _phrases("""
    upside down, right side up, all the way, counter clockwise, anti clockwise, a bit, a little, in half
    """)
UNITS = listed("degree degrees cm centimeter centimeters mm inch inches meter meters times percent seconds steps turns")
# Single prepositions; those of several words are below. A bank adds its own.
PREPOSITIONS = listed("""
    on onto in into inside within to toward towards from off of at by near beside behind under underneath beneath below above over
    around through across along against between among with using via for past onto upon outside beyond as like
    """)
COMPOUND_PREPOSITIONS = _phrases("""
    next to, close to, closer to, closest to, nearest to, adjacent to, far from, away from, out of, off of, inside of, outside of, in
    between, from under, from behind, from inside, from between, from above, from in, from on, from within, from beneath, from
    underneath, up to, up on, up against, up from, down to, down on, down in, down into, over to, on to, in to
    """)
# What asks for nothing: at the start of an instruction, and anywhere.
OPENERS = _phrases("""
    could you, can you, would you, will you, i want you to, i would like you to, i need you to, i'd like you to, your task is to, the
    task is to, go ahead and, the robot should, you should, try to, hey robot, ok robot, robot, hey, now, ok, let's, help me, you need
    to, be so kind as to, first, next, task, instruction
    """)
FILLERS = _phrases("please, kindly, just, carefully, gently, for me, now")
LINKS = _phrases("and then, and also, after that, and finally, and, then, next, finally")
PURPOSE = _phrases("in order to, so as to, to")
RELATIVES = _phrases("that is, that are, which is, which are, that's, located")
# A sentence with one of these says something that the grammar does not understand.
REFUSED = listed("""
    not no never don't dont doesn't without if unless until while before after when because but except instead than how what where why who
    should must is are was were be been do does did am i we you he she they can't cannot won't so
    """)
# Verbs that are nouns just as well: behind "and" they need something that only a verb is followed by.
DOUBLE = listed("""
    balance bend brush clean clear cover cut dial drop dry dump dunk dust empty exchange file fill fold grip hammer hang hit hold hook
    kick level lock mix mop mount pass play plug point press release roll scoop screw set shake slice slide sort spin spray spread
    stack store strike swap switch tap tie tip toss touch turn use wash wipe wrap zip
    """)
NOUNS = listed("""
    alphabet antenna apple apricot apron arm aubergine avocado bag bagel ball banana bar barrel basil basin basket basketball bat bath
    battery beaker bean bear beater bed bell belt bench berry bib bike bin bird biscuit blanket blender block board boat bolt book
    bookcase bookshelf boot bottle bottom bowl box bracelet bread brick broccoli broom brush bubble bucket bulb bun burger burner bus
    butter button cabbage cabinet cable caddy cake calculator camera can candle candy cap car caramel card cardboard carpet carrot
    cart carton case cauliflower celery cell center centre cereal chair chalk charger cheese cherry chicken chip chocolate chopstick
    cleaner clip clock cloth coaster coat coffee coin coke colander comb compartment computer cone container contents cooker cookie
    cooktop cord cork corn corner couch counter countertop cover crab crate crayon cream croissant cube cucumber cup cupboard curtain
    cushion cutlery cutter cylinder desk detergent dial dice dish dishcloth dishrack dishwasher doll door dough dragonfruit drape
    drawer dresser dressing drill drink drum dryer duck duster edge egg eggplant elephant end eraser extinguisher fabric face fan
    faucet figure file fish flag flashlight flask floor flour flower foil folder food football fork frame fridge fruit fryer funnel
    furniture game garbage garlic gear ginger glass glasses glove glue goal grape grapefruit grater gripper ground ham hammer hand
    handle handtowel hanger hat headphone heater helmet herb hexagon hinge holder hole hook ice icecream iron item jacket jam jar
    jeans jello jelly joint jug juice ketchup kettle key keyboard kitchen kiwi knife knob ladder ladle lamp laptop leaf leek lego
    lemon lemonade letter lettuce lever lid light lighter lime lipstick liquid lock lollipop loop machine magazine magnet mango marker
    mat mayonnaise meat medicine melon microphone microwave middle milk mirror mitt mixer moka money monitor monkey moon mop mouse
    mousepad mouth mug mushroom mustard nail napkin needle noodle notebook nut object oil onion orange outlet oven package packet pad
    paint paintbrush pan pancake panda paper parsley pasta paste peach peanut pear peas peg pen pencil pentagon pepper perfume phone
    photo picture pie pile pillow pin pineapple pipe pitcher pizza place plane plant plastic plate plier plug plum pod point pole
    pomegranate popcorn port position post pot potato pouch puck pudding pumpkin purse pyramid quarter rabbit rack radio radish rag
    ramekin ramp raspberry razor receipt rectangle redbull refrigerator remote rice ring robot rod roll roof room rope rubber rubbish
    rug ruler salad salmon salt sandwich sauce saucepan saucer sausage scale scanner scarf scissors scoop screen screw screwdriver
    seat shaker shampoo shape sheep sheet shelf shell ship shirt shoe shoelace shorts shovel shrimp side sieve sink skateboard skillet
    slice slider slot snack soap soccer sock socket soda sofa soup space spanner spatula speaker sphere spice spinach sponge spoon
    spot spray square squash stand stapler star steak stick stone stool stove stovetop strainer straw strawberry string sugar sushi
    sweater switch table tablecloth tablet tape tea teabag teapot teddy television tennis thing tiger tile timer tin tissue toast
    toaster toilet tomato tong tongs tool toothbrush toothpaste top towel tower toy train trash tray triangle truck tube tumbler tuna
    turkey turnip umbrella utensil vacuum valve vase vegetable vest wall wallet washer watch water watermelon wheel whisk whiteboard
    window wine wire wok wood wrench yarn yogurt zebra ziploc zipper zucchini
    """)


class Phrases:
    """Phrases by their first word, longest first."""

    def __init__(self, phrases: Iterable[tuple[str, ...]]) -> None:
        self.by_first: dict[str, list[tuple[str, ...]]] = {}
        for phrase in sorted(phrases, key=len, reverse=True):
            self.by_first.setdefault(phrase[0], []).append(phrase)

    def length(self, words: Sequence[str], at: int) -> int:
        """Words of the longest phrase that stands there; 0 for none."""
        if at >= len(words):
            return 0
        return next((len(p) for p in self.by_first.get(words[at], ()) if tuple(words[at : at + len(p)]) == p), 0)


LINK_PHRASES, PURPOSE_PHRASES = Phrases(LINKS), Phrases(PURPOSE)
RELATIVE_PHRASES, ADVERB_PHRASES = Phrases(RELATIVES), Phrases(DIRECTION_PHRASES)


@dataclass(frozen=True, slots=True)
class Lexicon:
    """A bank's words, ready to be looked up. Phrases are tuples of words."""

    verbs: dict[tuple[str, ...], str]
    """Form -> meaning, for forms whose words stand together."""
    split_verbs: dict[tuple[str, ...], list[tuple[tuple[str, ...], str]]]
    """Words before the object -> (words behind it, meaning)."""
    relations: dict[tuple[str, ...], str]
    nouns: dict[str, str]
    attributes: dict[str, str]
    verb_phrases: Phrases
    relation_phrases: Phrases
    openers: Phrases
    fillers: Phrases
    known: frozenset[str]
    """Every word that stands anywhere: no typing error may turn into one."""
    closed: frozenset[str]
    """Those of them that are not nouns. Only they are mended: an unknown noun near a known one is most likely a noun of its own."""


@functools.lru_cache(maxsize=8)
def compiled(text: str) -> Lexicon:
    """The lexicon of a bank, given as its JSON."""
    bank = Bank.model_validate_json(text)
    forms = [(form, name) for table in (bank.verbs, bank.read_verbs) for name, group in table.items() for form in group]
    verbs = {tuple(form.split()): name for form, name in forms if OBJECT not in form}
    split: dict[tuple[str, ...], list[tuple[tuple[str, ...], str]]] = {}
    for form, name in forms:
        if OBJECT in form:
            before, behind = (tuple(part.split()) for part in form.split(OBJECT))
            split.setdefault(before, []).append((behind, name))
    relations = {(word,): word for word in PREPOSITIONS} | {phrase: " ".join(phrase) for phrase in COMPOUND_PREPOSITIONS}
    relations |= {tuple(phrase.split()): group[0] for group in bank.relations for phrase in group}
    nouns = {word: group[0] for group in bank.nouns for word in group}
    attributes = {word: word for word in ATTRIBUTES} | {word: group[0] for group in bank.attributes for word in group}
    openers = {*OPENERS, *(tuple(wrapper.split()[:-1]) for wrapper in bank.wrappers)}
    fillers = {*FILLERS, *((word,) for word in bank.insertions)}
    phrases = (*verbs, *split, *relations, *openers, *fillers, *LINKS, *PURPOSE, *RELATIVES, *DIRECTION_PHRASES)
    closed = frozenset(word for phrase in phrases for word in phrase).union(*_closed(), attributes)
    return Lexicon(
        verbs=verbs,
        split_verbs=split,
        relations=relations,
        nouns=nouns,
        attributes=attributes,
        verb_phrases=Phrases({*verbs, *split}),
        relation_phrases=Phrases(relations),
        openers=Phrases(openers),
        fillers=Phrases(fillers),
        known=closed.union(nouns, NOUNS, map(_plural, NOUNS)),
        closed=closed,
    )


def _closed() -> Iterable[Iterable[str]]:
    return ARTICLES, DETERMINERS, NUMBERS, PRONOUNS, DIRECTIONS, UNITS, REFUSED


def _plural(noun: str) -> str:
    if noun.endswith(("s", "sh", "ch", "x")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "s"
