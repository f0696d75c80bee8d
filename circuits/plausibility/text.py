"""A little plain English, on which dictionaries are tried when nobody gives other text.

Written for this purpose; ordinary prose, since random tokens are like nothing a dictionary has
seen. A paragraph is under 128 tokens with any tokenizer of a few thousand entries.
"""

__all__ = ["PARAGRAPHS"]

PARAGRAPHS: tuple[str, ...] = (
    "The old bridge had stood over the river for almost two hundred years. When the flood came in "
    "the spring of that year, the people of the town watched from the hill as the water rose above "
    "the stones, and nobody was sure that it would still be there in the morning.",
    "Anna put the letter on the table and looked out of the window. It was raining again. Her "
    "brother had promised to call before dinner, but the phone was silent, and the house felt "
    "larger than it had ever been when they were children.",
    "Most plants take in water through their roots and lose it through small openings in their "
    "leaves. On a hot day a large tree can move several hundred litres from the ground into the "
    "air. Without this steady stream the leaves would soon become too warm to work.",
    "The council met on Tuesday to discuss the new budget. Several members asked why the cost of "
    "the library had doubled since 2015, and the mayor answered that the first plan had left out "
    "the heating, the lifts and most of the furniture.",
    '"Where did you find it?" asked the boy. "Under the bench in the garden," said his friend, '
    '"right next to the broken pot. I think somebody lost it a long time ago." They turned the '
    "little key over and over, but there was no name on it.",
    "To make the soup, cut the onions and carrots into small pieces and cook them slowly in "
    "butter. Add the potatoes, cover everything with water, and wait for half an hour. Taste it "
    "before you add any salt, and serve it with fresh bread.",
    "In the second half the home team played much better. They scored twice in ten minutes, and "
    "for a moment it looked as if they would win the match, but a mistake near the end gave the "
    "visitors a free kick and with it the third goal.",
    "A computer does not know what a word means; it only follows the rules that it was given. And "
    "yet, if the rules are many and the examples are good, the answers can be so useful that we "
    "forget the difference, at least until something goes wrong.",
)
