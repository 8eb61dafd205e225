"""English words and Python names made from the name of a feature."""

# Endings of a singular, or of a plural without a rule.
_NO_PLURALS = ("ss", "us", "is", "news", "series", "species")
_VOWELS = ("a", "e", "i", "o", "u")
_SOUND_LIKE_CONSONANTS = ("eu", "one", "uni", "use", "usa")


# Plurals that end like regular ones of another singular.
_IRREGULAR = {
    **{
        f"{one}s": one
        for one in ("ache", "cache", "calorie", "cookie", "movie", "niche", "pie", "selfie", "tie", "zombie")
    },
    **{f"{one[:-2]}es": one for one in ("axis", "crisis", "diagnosis", "hypothesis", "thesis")},
    **{f"{one[:-1]}ves": one for one in ("calf", "half", "leaf", "loaf", "self", "shelf", "thief", "wolf")},
    **{f"{one}es": one for one in ("echo", "hero", "potato", "tomato", "veto")},
    "indices": "index",
    "matrices": "matrix",
    "vertices": "vertex",
    "knives": "knife",
    "lives": "life",
    "wives": "wife",
    "children": "child",
    "criteria": "criterion",
    "men": "man",
    "people": "person",
    "quizzes": "quiz",
    "women": "woman",
}
# Their singular ends with an e.
_WITH_E = ("auses", "ouses", "fuses", "muses", "cuses")


def singular(plural: str) -> str | None:
    """Guess the singular of a plural; None if the word does not look like one."""
    first, joint, last = plural.rpartition("_")
    found = _IRREGULAR.get(last) or _regular(last)
    return found and first + joint + found


def _regular(plural: str) -> str | None:
    if not plural.endswith("s") or plural.endswith(_NO_PLURALS):
        return None
    if plural.endswith("ies"):
        return f"{plural[:-3]}y"
    if plural.endswith("yses"):
        return f"{plural[:-2]}is"
    if plural.endswith(("sses", "shes", "ches", "xes", "zes")) or (
        plural.endswith("uses") and not plural.endswith(_WITH_E)
    ):
        return plural[:-2]
    return plural[:-1]


def spaced(name: str) -> str:
    return name.replace("_", " ")


def camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def with_article(words: str) -> str:
    is_vowel = words.startswith(_VOWELS) and not words.startswith(_SOUND_LIKE_CONSONANTS)
    return f"{'an' if is_vowel else 'a'} {words}"
