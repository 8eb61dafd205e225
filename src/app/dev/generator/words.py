"""English words and Python names made from the name of a feature."""

# Endings of a singular, or of a plural without a rule.
_NO_PLURALS = ("ss", "us", "is", "news", "series", "species")
_VOWELS = ("a", "e", "i", "o", "u")
_SOUND_LIKE_CONSONANTS = ("eu", "one", "uni", "use", "usa")


def singular(plural: str) -> str | None:
    """Guess the singular of a regular plural; None if the word does not look like one."""
    if not plural.endswith("s") or plural.endswith(_NO_PLURALS):
        return None
    if plural.endswith("ies"):
        return f"{plural[:-3]}y"
    if plural.endswith(("sses", "shes", "ches", "xes", "zes")):
        return plural[:-2]
    return plural[:-1]


def spaced(name: str) -> str:
    return name.replace("_", " ")


def camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def with_article(words: str) -> str:
    is_vowel = words.startswith(_VOWELS) and not words.startswith(_SOUND_LIKE_CONSONANTS)
    return f"{'an' if is_vowel else 'a'} {words}"
