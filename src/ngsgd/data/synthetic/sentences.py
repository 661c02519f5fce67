"""Random English sentences from a few patterns, so that all phones occur in many contexts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_WORDS = {
    "ADJECTIVE": """
        old young small great quiet bright heavy green wooden broken golden narrow famous empty careful gentle strange
        perfect yellow purple foolish hungry thirsty angry northern southern royal loyal pure rough smooth thick thin
        cheap sharp clever stubborn brave usual second third seventh little enormous beautiful ordinary
        terrible comfortable dangerous curious generous clean dark soft wild patient polite jealous shy huge blue white
        grey tall round hollow frozen silver crooked dusty cheerful""",
    "PERSON": """
        farmer teacher doctor sailor baker painter judge soldier king queen neighbour stranger child woman boy girl
        brother sister mother father uncle cousin captain lawyer tailor engineer author hunter guard nurse actor
        shepherd driver merchant pilot poet priest student villager thief witness""",
    "ANIMAL": """
        dog horse bird fish fox mouse goose sheep cow lion tiger bear wolf rabbit spider beetle owl pigeon donkey
        turtle chicken whale snake monkey zebra""",
    "THING": """
        letter picture basket hammer clock bottle chair orange apple cheese loaf butter coffee sugar measure treasure
        watch knife spoon cushion mirror ladder jacket button shoe glove thread needle candle book paper box key coin
        ring rope wheel engine machine guitar trumpet violin drum toy vase jewel scissors flower branch feather stone
        leather cloth kettle oven towel blanket""",
    "PLACE": """
        village river mountain bridge garden kitchen window church market harbour forest valley castle tower island
        beach desert school theatre station hospital library office prison palace tunnel cellar attic stable orchard
        meadow quarry lighthouse courthouse bakery square corner""",
    "VERB": """
        found watched carried opened closed painted followed remembered forgot bought sold lost broke mended washed
        covered measured judged asked_for looked_at thanked joined enjoyed dropped pushed pulled threw caught hid
        showed borrowed stole examined described admired feared avoided counted moved touched chose""",
    "WENT": """
        walked ran travelled hurried sailed wandered returned marched drove climbed flew went crawled rushed""",
    "ADVERB": """
        slowly quickly quietly yesterday usually always never often together suddenly carefully gladly finally
        secretly once twice rarely perhaps easily bravely loudly""",
    "WHERE": """near behind under above beyond beside through without before after across around against within""",
    "WHEN": """
        yesterday tonight last_year every_morning on_Thursday in_the_evening before_sunrise at_noon in_July
        during_the_war after_the_storm once_a_month all_winter this_spring""",
    "NUMBER": """two three four five six seven eight nine eleven twelve thirteen fifteen twenty thirty""",
}  # fmt: skip
_PATTERNS = """
the ADJECTIVE PERSON VERB the THING WHERE the PLACE
the PERSON and the ADJECTIVE ANIMAL WENT WHERE the PLACE
WHEN the PERSON VERB NUMBER ADJECTIVE things WHERE the PLACE
ADVERB the ANIMAL WENT WHERE the ADJECTIVE PLACE
a PERSON ADVERB VERB every ADJECTIVE THING
why was the ADJECTIVE THING WHERE the PLACE
the PERSON thought that the ANIMAL VERB a THING
my PERSON VERB your ADJECTIVE THING WHEN
NUMBER hundred and NUMBER ANIMAL tracks were WHERE the PLACE
if the PERSON WENT WHERE the PLACE the ANIMAL would be ADJECTIVE
this THING is as ADJECTIVE as that ADJECTIVE THING
there were NUMBER ADJECTIVE pictures of a PERSON and a THING
she VERB the ADJECTIVE THING and he ADVERB WENT WHERE the PLACE
they should have VERB their THING WHEN
nobody in the PLACE VERB an ADJECTIVE THING
"""


WORDS = {kind: tuple(word.replace("_", " ") for word in text.split()) for kind, text in _WORDS.items()}
PATTERNS = tuple(tuple(line.split()) for line in _PATTERNS.strip().splitlines())


def sentence(rng: np.random.Generator, accept: Callable[[str], bool]) -> str:
    """Draws random sentences until one is accepted, and returns it.

    Args:
        rng: random generator.
        accept: decides whether a sentence is accepted.
    """
    while True:
        pattern = PATTERNS[rng.integers(len(PATTERNS))]
        words = [WORDS[word][rng.integers(len(WORDS[word]))] if word in WORDS else word for word in pattern]
        text = " ".join(words)
        if accept(text):
            return text
