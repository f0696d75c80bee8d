"""The names, places, objects and nouns the tasks draw from, each split into seen and held out.

`HELD_OUT_*` words never appear in the task documents `tiny` was trained on. `STORY_*` words are
those of children's stories (TinyStories), for models that know little else.
"""
# ruff: noqa: SIM905 - lists of words read best as running text

__all__ = [
    "HELD_OUT_NAMES",
    "HELD_OUT_NOUNS",
    "NAMES",
    "NOUNS",
    "OBJECTS",
    "PLACES",
    "STORY_NAMES",
    "STORY_OBJECTS",
    "STORY_PLACES",
]

NAMES = tuple(
    """Aaron Adam Albert Alex Alice Amanda Amy Andrea Andrew Anna Anne Arthur Barbara Ben
    Benjamin Betty Blake Bob Bobby Brandon Brian Bruce Carl Carlos Catherine Charles Charlie
    Christina Christopher Claire Daniel David Dean Dennis Diana Donald Donna Dorothy Edward
    Elizabeth Emily Emma Eric Frances Frank Fred Gary George Grace Graham Grant Greg Harold
    Harry Helen Howard Hugh Ian Ivan Jack Jacob Jane Jason Jean Jeff Jennifer Jessica Jimmy
    Joan Joe John Johnny Jonathan Joseph Josh Joshua Julia Julian Julie Justin Karen Kate
    Katie Keith Ken Kevin Kim Kyle Larry Laura Lee Leo Leon Linda Lisa Louis Lucy Luke
    Margaret Marie Mark Martha Martin Matthew Max Michael Nancy Neil Nick Oliver Oscar
    Patrick Paul Philip Rachel Richard""".split()
)
HELD_OUT_NAMES = tuple(
    """Alan Anthony Bill Carol Chris Douglas Eva Henry James Jim Jordan Lewis Maria Mary Mike
    Peter Robert""".split()
)
PLACES = (
    *("store", "garden", "school", "hospital", "office", "house", "station", "park"),
    *("market", "beach", "library", "museum", "theater", "church", "farm", "river"),
)
OBJECTS = (
    *("drink", "book", "ring", "ball", "letter", "gift", "coin", "key"),
    *("map", "hat", "flower", "box", "cake", "knife", "picture", "ticket"),
)
NOUNS = tuple(
    """war siege battle campaign conflict rebellion revolution uprising strike occupation
    expedition journey voyage tour mission reign rule government dynasty empire treaty
    alliance contract agreement marriage friendship feud trial investigation study project
    construction festival famine plague epidemic drought crisis""".split()
)
HELD_OUT_NOUNS = ("peace", "dispute", "career", "debate", "season", "trade", "search", "program")
STORY_NAMES = tuple(
    """Alice Amy Anna Ben Bill Billy Bob Bobby Emma Fred Jack Jane Jimmy Joe John Kate Kim Leo Lucy
    Mark Mary Max Mike Nick Peter Rose Sam Sue Tim Tom Tommy""".split()
)
STORY_PLACES = (
    *("park", "garden", "beach", "house", "farm", "store", "school", "zoo", "forest"),
    *("lake", "river", "market", "library", "pool", "hill", "shop", "field"),
)
STORY_OBJECTS = (
    *("ball", "book", "hat", "box", "flower", "cookie", "doll", "gift", "drink", "map"),
    *("key", "ring", "bear", "car", "shell", "leaf", "stick", "picture", "letter"),
)
