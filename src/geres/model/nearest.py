"""What was meant by a word that is not known."""

from __future__ import annotations

from collections.abc import Iterable

_LIKENESS = 0.66
_SHORTEST_BEGINNING = 3


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like this one, or the shortest that begins so; None where none is near."""
    from difflib import get_close_matches  # slow to import, and only a mistake needs it

    low, names = word.lower(), {name.lower(): name for name in known}
    before = low[: low.rfind(".") + 1]
    siblings = {name[len(before) :]: names[name] for name in names if name.startswith(before)}
    if before and siblings:  # what they share makes no two names alike
        low, names = low[len(before) :], siblings
    if near := get_close_matches(low, names, n=1, cutoff=_LIKENESS):
        return names[near[0]]
    if len(low) < _SHORTEST_BEGINNING:
        return None
    longer = min((name for name in names if name.startswith(low)), key=len, default=None)
    return None if longer is None else names[longer]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where no known word is near."""
    near = nearest(word, known)
    return f"; did you mean {near}?" if near else ""
