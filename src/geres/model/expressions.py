"""Filter and match expressions: a small, safe subset of Python, checked once, then run or turned into SQL.

`state == "failed" and exit_code in (1, 2)`, `meta.proj == "x"`, `node.memory_bytes >= "64G"`: comparisons
of names with literals, joined by and, or, not and brackets.  `"x" in name` asks whether a text contains
another.  A comparison with something that has no value is false, but for `==` and `!=` with None; only a
text that is missing differs from every text: `node.labels.zone != "a"` takes nodes without that label.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NoReturn

from geres.errors import Invalid
from geres.model import ids
from geres.model.nearest import did_you_mean
from geres.model.units import parse_duration, parse_size, parse_time

_MOST_CHARACTERS = 2000
_MOST_PARTS = 400
_MOST_NUMBER = 1 << 62
_KEY_FORBIDDEN = frozenset('"\\\0')

#: What a field holds; it says which literals may be compared with it and how they are stored.
#: bytes takes "8G" too, seconds takes "1h30m"; micros are seconds stored in microseconds, millis are
#: numbers stored in thousandths.
Kind = Literal["text", "number", "bytes", "seconds", "micros", "millis", "time", "task", "job", "truth"]

_COMPARE: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Eq: ("=", operator.eq),
    ast.NotEq: ("<>", operator.ne),
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "<>": "<>"}
_BY_SIGN = dict(_COMPARE.values())


@dataclass(frozen=True)
class Field:
    """A name that expressions may use.  `sql` is its column; `keys` marks a map of texts, like `meta`."""

    kind: Kind
    sql: str = ""
    keys: bool = False
    words: tuple[str, ...] = ()  #: the only texts that it can be; empty: any


@dataclass(frozen=True)
class _Name:
    field: Field
    path: tuple[str, ...]  #: where its value lies, for evaluation in Python


@dataclass(frozen=True)
class _Compare:
    sign: str
    left: _Name
    right: Any  #: a stored literal, None or another _Name


@dataclass(frozen=True)
class _OneOf:
    left: _Name
    choices: tuple[Any, ...]


@dataclass(frozen=True)
class _Contains:
    needle: str
    name: _Name


@dataclass(frozen=True)
class _Truth:
    name: _Name


@dataclass(frozen=True)
class _Not:
    part: _Part


@dataclass(frozen=True)
class _Joined:
    how: Literal["AND", "OR"]
    parts: tuple[_Part, ...]


_Part = _Compare | _OneOf | _Contains | _Truth | _Not | _Joined | bool

NODE_FIELDS: dict[str, Field] = {
    "node.name": Field("text"),
    "node.pool": Field("text"),
    "node.arch": Field("text"),
    "node.os": Field("text"),
    "node.host": Field("text"),
    "node.cpus": Field("number"),
    "node.memory_bytes": Field("bytes"),
    "node.gpus": Field("number"),
    "node.labels": Field("text", keys=True),
    "node.resources": Field("number", keys=True),
}


@lru_cache(maxsize=4096)
def node_matcher(text: str, field: str = "match") -> Callable[[Mapping[str, Any]], bool]:
    """A function that tells whether a node matches; raises Invalid naming `field` where the text is wrong.

    The function takes the node's facts without the `node.` before them: `name`, `pool`, `arch`, `os`,
    `host`, `cpus`, `memory_bytes`, `gpus`, and the maps `labels` and `resources`.
    """
    part = _Reader(text, NODE_FIELDS, field).read()
    test = _compile(part)
    return lambda facts: bool(test({"node": facts}))


def to_sql(
    text: str, fields: Mapping[str, Field], *, json_text: str, field: str = "filter"
) -> tuple[str, dict[str, Any]]:
    """A condition for WHERE and its parameters (`f0`, `f1`, ...), from a fixed table of columns.

    `json_text` is how the database reads a text out of a JSON column, with `{column}` and `{key}` in it.
    Raises Invalid naming `field`.
    """
    writer = _Writer(json_text)
    condition = writer.write(_Reader(text, fields, field).read())
    return condition, writer.parameters


class _Reader:
    """Checks an expression against the names it may use."""

    def __init__(self, text: str, fields: Mapping[str, Field], field: str) -> None:
        # A line break means no more than a blank, and blanks before an expression would be an indent.
        self.text = " ".join(text.splitlines()).lstrip()
        self.stripped = len(text) - len(text.lstrip())
        self.fields, self.field = fields, field

    def read(self) -> _Part:
        if len(self.text) > _MOST_CHARACTERS:
            raise Invalid(f"{self.field}: is longer than {_MOST_CHARACTERS} characters", field=self.field)
        if not self.text:
            raise Invalid(f'{self.field}: is empty; write one like state == "failed"', field=self.field)
        try:
            tree = ast.parse(self.text, mode="eval")
        except SyntaxError as error:
            self.refuse_at(f"this cannot be read ({error.msg})", max(error.offset or 1, 1))
        except (ValueError, RecursionError, MemoryError):
            self.refuse_at("this cannot be read", 1)
        if sum(1 for _ in ast.walk(tree)) > _MOST_PARTS:
            raise Invalid(f"{self.field}: has too many parts", field=self.field)
        return self.part(tree.body)

    def refuse(self, why: str, node: ast.expr) -> NoReturn:
        before = self.text.encode()[: node.col_offset].decode()
        self.refuse_at(why, len(before) + 1)

    def refuse_at(self, why: str, position: int) -> NoReturn:
        position += self.stripped
        raise Invalid(f"{self.field}: at character {position}: {why}", field=self.field, position=position)

    def part(self, node: ast.expr) -> _Part:
        match node:
            case ast.BoolOp(op=op, values=values):
                return _Joined(
                    "AND" if isinstance(op, ast.And) else "OR", tuple(self.part(value) for value in values)
                )
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return _Not(self.part(operand))
            case ast.Compare():
                return self.comparison(node)
            case ast.Constant(value=bool() as value):
                return value
            case ast.Name() | ast.Attribute() | ast.Subscript():
                return _Truth(self.name(node))
        self.refuse('a condition is wanted, like state == "failed"', node)

    def comparison(self, node: ast.Compare) -> _Part:
        parts: list[_Part] = []
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            parts.append(self.one_comparison(left, op, right))
            left = right
        return parts[0] if len(parts) == 1 else _Joined("AND", tuple(parts))

    def one_comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> _Part:
        if isinstance(op, ast.In | ast.NotIn):
            found = self.membership(left, right)
            if isinstance(op, ast.In):
                return found
            if isinstance(found, _OneOf) and None not in found.choices:
                return _differs(found.left, _Not(found))
            return _Not(found)
        if isinstance(op, ast.Is | ast.IsNot):
            self.refuse("`is` is not known here; write == or !=", left)
        sign = _COMPARE[type(op)][0]
        if not _is_name(left):
            if not _is_name(right):
                self.refuse("one side of a comparison must be a name", left)
            left, right, sign = right, left, _MIRRORED[sign]
        name = self.name(left)
        if _is_name(right):
            other = self.name(right)
            if other.field.kind != name.field.kind:
                self.refuse("two names of different kinds cannot be compared", right)
            return _Compare(sign, name, other)
        value = self.literal(name, right)
        if value is None and sign not in ("=", "<>"):
            self.refuse("None can only be compared with == and !=", right)
        found = _Compare(sign, name, value)
        return _differs(name, found) if sign == "<>" and value is not None else found

    def membership(self, left: ast.expr, right: ast.expr) -> _Part:
        if isinstance(right, ast.List | ast.Tuple | ast.Set):
            if not _is_name(left):
                self.refuse("a name is wanted before `in`", left)
            name = self.name(left)
            return _OneOf(name, tuple(self.literal(name, choice) for choice in right.elts))
        if _is_name(right) and isinstance(left, ast.Constant) and isinstance(left.value, str) and left.value:
            name = self.name(right)
            if name.field.kind != "text":
                self.refuse("`in` looks into texts and lists only", right)
            return _Contains(left.value, name)
        self.refuse('write NAME in ("a", "b") or "part" in NAME', left)

    def name(self, node: ast.expr) -> _Name:
        path = self.dotted(node)
        whole = ".".join(path)
        known = self.fields.get(whole)
        if known and not known.keys:
            return _Name(known, path)
        owner = self.fields.get(".".join(path[:-1]))
        if owner and owner.keys:
            return _Name(owner, path)
        if known:
            self.refuse(f"{whole} needs a key, like {whole}.KEY", node)
        names = sorted(n + ".KEY" if f.keys else n for n, f in self.fields.items())
        hint = did_you_mean(whole, names) or f"; there are {', '.join(names)}"
        self.refuse(f"{whole!r} is no known name{hint}", node)

    def dotted(self, node: ast.expr) -> tuple[str, ...]:
        match node:
            case ast.Name(id=name):
                return (name,)
            case ast.Attribute(value=value, attr=name):
                return (*self.dotted(value), name)
            case ast.Subscript(value=value, slice=ast.Constant(value=str() as key)):
                if not key or _KEY_FORBIDDEN & set(key) or not is_storable(key):
                    self.refuse("a key cannot be empty or hold quotes or backslashes", node)
                return (*self.dotted(value), key)
        self.refuse("a name is wanted here", node)

    def literal(self, name: _Name, node: ast.expr) -> Any:
        """The value of a literal as the store keeps it, checked against what the field holds."""
        value = self.constant(node)
        if value is None:
            return None
        kind, words, path = name.field.kind, name.field.words, ".".join(name.path)
        try:
            if words and isinstance(value, str) and value not in words:
                hint = did_you_mean(value, words) or f"; there are {', '.join(words)}"
                raise Invalid(f"{path} is never {value!r}{hint}")
            return _store_literal(kind, value, path)
        except Invalid as error:
            self.refuse(str(error), node)

    def constant(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=None | bool() | int() | float() | str() as value):
                if isinstance(value, str) and not is_storable(value):
                    self.refuse("a text cannot hold NUL or half a character", node)
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return -value
        self.refuse("a number, a text in quotes or None is wanted here", node)


def is_storable(text: str) -> bool:
    """False for what no database takes: NUL, and surrogates without their other half."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _differs(name: _Name, part: _Part) -> _Part:
    """A number, time or size that is missing differs from nothing, a missing text from every text."""
    if name.field.kind == "text":
        return part
    return _Joined("AND", (_Compare("<>", name, None), part))


def _is_name(node: ast.expr) -> bool:
    return isinstance(node, ast.Name | ast.Attribute | ast.Subscript)


def _store_literal(kind: Kind, value: bool | int | float | str, name: str) -> Any:
    if kind == "truth":
        if not isinstance(value, bool):
            raise Invalid(f"{name} is True or False")
        return value
    if isinstance(value, bool):
        raise Invalid(f"{name} is not True or False")
    if isinstance(value, str):
        return _store_text(kind, value, name)
    if not -_MOST_NUMBER < value < _MOST_NUMBER:
        raise Invalid(f"{name} is never that large")
    match kind:
        case "number" | "bytes" | "seconds":
            return value
        case "micros":
            return round(value * 1_000_000)
        case "millis":
            return round(value * 1000)
    raise Invalid(f"{name} is text: write {str(value)!r} in quotes")


def _store_text(kind: Kind, value: str, name: str) -> Any:
    match kind:
        case "text":
            return value
        case "bytes":
            return parse_size(value, name)
        case "seconds":
            return parse_duration(value, name)
        case "micros":
            return round(parse_duration(value, name) * 1_000_000)
        case "time":
            return parse_time(value, name)
        case "task":
            key = ids.parse_task(value)
        case "job":
            key = ids.parse_job(value)
        case _:
            raise Invalid(f"{name} is a number: write it without quotes")
    if key is None:
        raise Invalid(f"{value!r} is no id of a {kind}")
    return key


def _compile(part: _Part) -> Callable[[Mapping[str, Any]], Any]:
    match part:
        case bool():
            return lambda facts: part
        case _Not(part=inner):
            test = _compile(inner)
            return lambda facts: not test(facts)
        case _Joined(how=how, parts=parts):
            tests = [_compile(one) for one in parts]
            joined = all if how == "AND" else any
            return lambda facts: joined(test(facts) for test in tests)
        case _Truth(name=name):
            return _getter(name)
        case _Contains(needle=needle, name=name):
            get = _getter(name)
            return lambda facts: needle in (get(facts) or "")
        case _OneOf(left=name, choices=choices):
            get = _getter(name)
            return lambda facts: get(facts) in choices
        case _Compare():
            return _compile_comparison(part)


def _compile_comparison(part: _Compare) -> Callable[[Mapping[str, Any]], Any]:
    get, compare = _getter(part.left), _BY_SIGN[part.sign]
    other = _getter(part.right) if isinstance(part.right, _Name) else (lambda facts: part.right)
    if part.sign in ("=", "<>") and not isinstance(part.right, _Name):
        return lambda facts: compare(get(facts), other(facts))

    def test(facts: Mapping[str, Any]) -> bool:
        left, right = get(facts), other(facts)
        return left is not None and right is not None and bool(compare(left, right))

    return test


def _getter(name: _Name) -> Callable[[Mapping[str, Any]], Any]:
    path = name.path
    missing = 0 if name.field.keys and name.field.kind == "number" else None

    def get(facts: Mapping[str, Any]) -> Any:
        value: Any = facts
        for key in path:
            value = value.get(key)
            if value is None:
                return missing
        return value

    return get


class _Writer:
    """Writes a checked expression as SQL.  A NULL counts as false, as in WHERE."""

    def __init__(self, json_text: str) -> None:
        self.json_text = json_text
        self.parameters: dict[str, Any] = {}

    def value(self, value: Any) -> str:
        name = f"f{len(self.parameters)}"
        self.parameters[name] = value
        return f":{name}"

    def column(self, name: _Name) -> str:
        if not name.field.keys:
            return name.field.sql
        return self.json_text.format(column=name.field.sql, key=self.value(name.path[-1]))

    def write(self, part: _Part) -> str:
        match part:
            case bool():
                return "1 = 1" if part else "1 = 0"
            case _Not(part=inner):
                return f"NOT COALESCE({self.write(inner)}, FALSE)"
            case _Joined(how=how, parts=parts):
                return "(" + f" {how} ".join(self.write(one) for one in parts) + ")"
            case _Truth(name=name):
                return self.truth(name)
            case _Contains(needle=needle, name=name):
                column = self.column(name)
                # LIKE ignores case on SQLite alone; taking the part out changes a text that holds it.
                return f"REPLACE({column}, {self.value(needle)}, '') <> {column}"
            case _OneOf(left=name, choices=choices):
                return self.one_of(name, choices)
            case _Compare():
                return self.comparison(part)

    def truth(self, name: _Name) -> str:
        column = self.column(name)
        if name.field.kind == "truth":
            return column
        empty = "''" if name.field.kind == "text" else "0"
        return f"{column} <> {empty}"

    def one_of(self, name: _Name, choices: tuple[Any, ...]) -> str:
        column = self.column(name)
        values = [self.value(choice) for choice in choices if choice is not None]
        conditions = [f"{column} IN ({', '.join(values)})"] if values else []
        if None in choices:
            conditions.append(f"{column} IS NULL")
        return "(" + (" OR ".join(conditions) or "1 = 0") + ")"

    def comparison(self, part: _Compare) -> str:
        column = self.column(part.left)
        if part.right is None:
            return f"{column} IS {'' if part.sign == '=' else 'NOT '}NULL"
        if isinstance(part.right, _Name):
            return f"{column} {part.sign} {self.column(part.right)}"
        condition = f"{column} {part.sign} {self.value(part.right)}"
        return f"({condition} OR {column} IS NULL)" if part.sign == "<>" else condition
