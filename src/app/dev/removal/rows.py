"""Takes the rows of a feature out of the tables that name every operation, event, setting or file of the application."""

import ast
import re
from collections.abc import Iterator, Mapping

from app.dev.removal.feature import Installed, text_of

# A requirement of ASVS whose last test is removed, and what stands there instead.
_UNMET = re.compile(r'status = "met"\nabout = ".*"\ntests = \[\]\n')
_GAP = 'status = "gap"\nabout = "The feature {} met this, and was removed. Say whether it still applies."\n'
_FILES = ("tests/*.py", "tests/*/*.py", "tests/fuzz/*.toml", "docs/security/*.toml", "README.md", "docs/*.md")


def without_rows(feature: Installed) -> Mapping[str, str]:
    """Return the new text of each file that has rows of the feature."""
    texts = {}
    for path in sorted(path for pattern in _FILES for path in feature.root.glob(pattern)):
        if not feature.owns(path) and "dev" not in path.relative_to(feature.root).parts:
            before = path.read_text()
            after = _EDITS[path.suffix](feature, before)
            if after != before:
                texts[str(path.relative_to(feature.root))] = after
    return texts


def _is_of(feature: Installed, key: str) -> bool:
    """Return whether a row with this key is about the feature: one of its operations, names, files, settings or tables."""
    return key in feature.names or _is_place(feature, key) or key.startswith(f"APP_{feature.name.upper()}__")


def _is_place(feature: Installed, key: str) -> bool:
    places = tuple(path for each in feature.prefixes for path in (each, each.removeprefix("src/app/")))
    return key in feature.operations or key.startswith(places)


def _python(feature: Installed, text: str) -> str:
    """Return the text without the entries of dictionaries, sets and lists that are about the feature."""
    words = {path.rpartition("/")[2] for path in feature.paths} | feature.names | feature.operations
    if not any(word in text for word in {*words, feature.name.upper()}):
        return text
    lines = text.splitlines(keepends=True)
    for first, last in sorted(_entries(feature, ast.parse(text)), reverse=True):
        del lines[first - 1 : last]
    return "".join(lines)


def _entries(feature: Installed, tree: ast.AST) -> Iterator[tuple[int, int]]:
    """Yield the first and the last line of each entry that shares them with no other one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            pairs = [(key, value) for key, value in zip(node.keys, node.values, strict=True) if key]
            found = [_lines(key, value) for key, value in pairs if _is_of(feature, text_of(key))]
        elif isinstance(node, ast.Set | ast.List):
            found = [_lines(each, each) for each in node.elts if _is_place(feature, text_of(each))]
        else:
            continue
        edges = {node.lineno, node.end_lineno}
        yield from (lines for lines in found if not edges.intersection(lines))


def _lines(first: ast.expr, last: ast.expr) -> tuple[int, int]:
    return first.lineno, last.end_lineno or last.lineno


def _toml(feature: Installed, text: str) -> str:
    """Return the text without the lines and sections whose key is one of the feature, and without its tests in lists."""
    kept, is_skipped = [], False
    urls = {operation.partition(" ")[2] for operation in feature.operations}
    for line in text.splitlines(keepends=True):
        section = re.match(r"\[(?:\w+\.)?\"?([^\"\]]+)\"?\]", line)
        if section:
            is_skipped = section[1] in feature.tables or _is_of(feature, section[1])
        key = re.match(r'\s*"?([^"=]+?)"?(?: =|,?$)', line)
        if not is_skipped and not (key and (key[1] in urls or _is_of(feature, key[1]))):
            kept.append(_without_tests(feature, line))
    return _UNMET.sub(_GAP.format(feature.name), "".join(kept))


def _without_tests(feature: Installed, line: str) -> str:
    for prefix in (prefix for prefix in feature.prefixes if prefix.startswith("tests/")):
        line = re.sub(rf'"{re.escape(prefix)}[^"]+"(?:, )?', "", line).replace(", ]", "]")
    return line


def _markdown(feature: Installed, text: str) -> str:
    """Return the text without the rows and list items about the feature.

    These are rows of the table of moved names that lead to one of its modules, rows that name one of its tests, and rows and items
    that link to one of its pages.
    """
    places = "|".join(map(re.escape, feature.modules))
    moved = rf"^\| `[\w.]+` \| `(?:{places})\b[\w.]*` \|\n"
    tests = "|".join(re.escape(prefix) for prefix in feature.prefixes if prefix.startswith("tests/"))
    text = re.sub(rf"{moved}|^\|.*`(?:{tests}).*\n", "", text, flags=re.MULTILINE)
    pages = "|".join(map(re.escape, feature.documents))
    return re.sub(rf"^[|-] .*\]\((?:[\w/]+/)?(?:{pages})[)#].*\n", "", text, flags=re.MULTILINE) if pages else text


_EDITS = {".py": _python, ".toml": _toml, ".md": _markdown}
