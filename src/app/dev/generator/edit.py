"""Edits the list of features in `src/app/features.py`, and adds functions to the files of other features."""

import ast

from app.dev.generator.errors import GeneratorError

FILE = "src/app/features.py"
_NOT_A_LIST = f"{FILE} has no tuple FEATURES = (…) of names. Restore it first."


def listed(text: str) -> list[str]:
    """Return the features in the list."""
    return [str(element.value) for element in _elements(text)]


def added(text: str, name: str) -> str:
    """Return the file with this feature at the end of the list, on a line of its own."""
    last = _elements(text)[-1]
    lines = text.splitlines(keepends=True)
    end = (last.end_lineno or last.lineno) - 1
    lines[end] = _with_comma(lines[end], last.end_col_offset or 0)
    indent = " " * (len(lines[end]) - len(lines[end].lstrip()))
    lines.insert(end + 1, f'{indent}"{name}",\n')
    return "".join(lines)


def with_function(text: str, code: str) -> str:
    """Return a module with a function after its function `get`, or at its end. The imports of the code follow the docstring."""
    imports, start, function = code.partition("\n\nasync def ")
    body = ast.parse(text).body
    lines = text.splitlines(keepends=True)
    end = next((node.end_lineno or 0 for node in body if getattr(node, "name", "") == "get"), len(lines))
    first = 0 if ast.get_docstring(ast.parse(text)) is None else body[0].end_lineno or 0
    parts = (lines[:first], [f"\n{imports}\n"], lines[first:end], [f"\n{start}{function}"], lines[end:])
    return "".join(line for part in parts for line in part)


def removed(text: str, name: str) -> str:
    """Return the file without this feature and its comment."""
    elements = _elements(text)
    (gone,) = (element for element in elements if element.value == name)
    lines = text.splitlines(keepends=True)
    if any(element.lineno == gone.lineno for element in elements if element is not gone):
        line = lines[gone.lineno - 1]
        lines[gone.lineno - 1] = line[: gone.col_offset] + line[gone.end_col_offset or 0 :].lstrip(", ")
    else:
        del lines[gone.lineno - 1]
    return "".join(lines)


def _with_comma(line: str, end: int) -> str:
    rest = line[end:]
    return line if rest.lstrip().startswith(",") else f"{line[:end]},{rest}"


def _elements(text: str) -> list[ast.Constant]:
    for node in ast.parse(text).body:
        if isinstance(node, ast.AnnAssign | ast.Assign) and _target(node) == "FEATURES":
            elements = node.value.elts if isinstance(node.value, ast.Tuple) else []
            found = [each for each in elements if isinstance(each, ast.Constant)]
            if found:
                return found
    raise GeneratorError(_NOT_A_LIST)


def _target(node: ast.AnnAssign | ast.Assign) -> str:
    return ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])
