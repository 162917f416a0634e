"""Options whose texts are paths with a name in front, or several in one."""

import os

_ABSENT = "n/a"  # stands for the default


def named_path(text: str) -> str:
    """Text "[NAME=]PATH" as it is; the type of such options."""
    return text


def joined_paths(text: str) -> str:
    """Text "[NAME=]PATH[+PATH ...]" as it is; the type of such options."""
    return text


def split_name(text: str) -> tuple[str, str]:
    """Name (may be empty) and path of "[NAME=]PATH". An existing path may contain a =."""
    name, _, path = text.rpartition("=") if not os.path.lexists(text) else ("", "", text)
    return name, path


def split_paths(text: str) -> tuple[str, list[str]]:
    """Name (may be empty) and paths of "[NAME=]PATH[+PATH ...]". Paths that all exist may contain = and +."""
    cuts = [-1, *(k for k, char in enumerate(text) if char == "=")]
    for cut in cuts:
        if paths := _existing(text[cut + 1 :]):
            return text[: max(cut, 0)], paths
    name, _, paths = text.rpartition("=")
    return name, paths.split("+")


def _existing(text):
    """Existing paths joined by +, each as long as possible; empty if there are none such."""
    pieces = text.split("+")
    for n in range(len(pieces), 0, -1):
        first = "+".join(pieces[:n])
        if first == _ABSENT or os.path.lexists(first):
            others = _existing("+".join(pieces[n:]))
            if others or n == len(pieces):
                return [first, *others]
    return []


def absolute_paths(text: str, kind: object) -> str:
    """A text of one of the types with absolute paths, where they exist."""
    if kind is joined_paths:
        name, paths = split_paths(text)
        existing = [os.path.abspath(path) if os.path.lexists(path) else path for path in paths]  # noqa: PTH100
        return f"{name}={'+'.join(existing)}" if name else "+".join(existing)
    name, path = split_name(text)
    if not os.path.lexists(path):
        return text
    return f"{name}={os.path.abspath(path)}" if name else os.path.abspath(path)  # noqa: PTH100
