"""The words of a text, as the full-text search splits it.

PostgreSQL's parser also looks for hosts, paths, tags and numbers with signs, which takes quadratic
time for some texts. So it only gets letters, digits, apostrophes and spaces.
"""

PUNCTUATION = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~'
_SPACES = str.maketrans(dict.fromkeys(PUNCTUATION, " "))


def bare(text: str) -> str:
    """Return SQL for the text, with spaces in place of punctuation."""
    return f"translate({text}, '{PUNCTUATION}', repeat(' ', {len(PUNCTUATION)}))"


def vector(world_id: str, text: str) -> str:
    """Return SQL for the words of a text, in the text-search configuration of its world."""
    configuration = f"(select text_search::regconfig from worlds where id = {world_id})"  # noqa: S608
    return f"to_tsvector({configuration}, {bare(text)})"


def read_search(text: str) -> str:
    """Return the search without punctuation, but for what ``websearch_to_tsquery`` understands.

    These are quotes around a phrase, and a hyphen before a word.
    """
    kept = [
        character
        if character == '"' or (character == "-" and not before.strip('" '))
        else character.translate(_SPACES)
        for before, character in zip(" " + text, text, strict=False)
    ]
    return "".join(kept)
