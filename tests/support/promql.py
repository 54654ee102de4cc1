"""What a PromQL expression asks for, held against the metrics that there are.

The parser says whether it is PromQL at all. This says whether it can give anything: whether its metrics exist, have the
labels that it names, and meet in operators with the labels that those match on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from promql_parser import (
    AggModifierType,
    AggregateExpr,
    BinaryExpr,
    Call,
    Expr,
    LabelModifierType,
    MatchOp,
    MatrixSelector,
    NumberLiteral,
    ParenExpr,
    StringLiteral,
    SubqueryExpr,
    UnaryExpr,
    VectorSelector,
    parse,
)

# What Prometheus itself puts on every series that it scrapes.
TARGET = frozenset({"job", "instance"})
SETS = ("and", "or", "unless")

Labels = frozenset[str]


class Wrong(AssertionError):
    """The expression cannot give what it is meant to."""


class Query:
    """``labels``: of what it results in; None for a number. ``names``: of the metrics that it reads.

    ``known``: the labels of every series by its name, as in ``*_bucket``; ``values``: those that a label may have,
    where they are known, by metric and label.
    """

    def __init__(
        self, text: str, known: Mapping[str, Labels], values: Mapping[tuple[str, str], Labels] | None = None
    ) -> None:
        self._known = known
        self._values = values or {}
        self.names: set[str] = set()
        self.labels = self._of(parse(text))

    def _of(self, expr: Any) -> Labels | None:
        match expr:
            case NumberLiteral() | StringLiteral():
                return None
            case ParenExpr() | UnaryExpr() | SubqueryExpr():
                return self._of(expr.expr)
            case MatrixSelector():
                return self._of(expr.vector_selector)
            case VectorSelector():
                return self._selected(expr)
            case AggregateExpr():
                return self._aggregated(expr)
            case Call():
                return self._called(expr)
            case BinaryExpr():
                return self._matched(expr)
        raise Wrong(f"{type(expr).__name__} is not understood")

    def _selected(self, expr: VectorSelector) -> Labels:
        name = expr.name or ""
        if name not in self._known:
            raise Wrong(f"there is no {name!r}")
        self.names.add(name)
        labels = self._known[name] | TARGET
        for matcher in expr.matchers.matchers:
            _has(labels, [matcher.name], name)
            possible = self._values.get((name, matcher.name))
            if possible is None or matcher.value.startswith("$"):
                continue
            exact = matcher.op in (MatchOp.Equal, MatchOp.NotEqual)
            pattern = re.compile(re.escape(matcher.value) if exact else matcher.value)
            if not any(pattern.fullmatch(it) for it in possible):
                raise Wrong(f"{matcher.name} of {name} is never {matcher.value!r}")
        return labels

    def _aggregated(self, expr: AggregateExpr) -> Labels:
        inner = self._vector(expr.expr)
        if str(expr.op) in ("topk", "bottomk"):
            return inner
        if expr.modifier is None:
            return frozenset()
        given = expr.modifier.labels
        _has(inner, given, "what is aggregated")
        return frozenset(given) if expr.modifier.type == AggModifierType.By else inner - set(given)

    def _called(self, expr: Call) -> Labels | None:
        results = [self._of(it) for it in expr.args]
        vectors = [it for it in results if it is not None]
        if expr.func.name == "absent":
            return frozenset()
        if expr.func.name in ("time", "vector"):
            return None if expr.func.name == "time" else frozenset()
        if not vectors:
            raise Wrong(f"{expr.func.name} of nothing")
        if expr.func.name == "histogram_quantile":
            _has(vectors[0], ["le"], "histogram_quantile's argument")
            return vectors[0] - {"le"}
        if expr.func.name in ("rate", "increase", "irate"):
            _is_a_counter(expr.args[0])
        return vectors[0]

    def _matched(self, expr: BinaryExpr) -> Labels | None:
        left, right = self._of(expr.lhs), self._of(expr.rhs)
        if left is None or right is None:
            return right if left is None else left
        modifier = expr.modifier
        matching = modifier.matching if modifier else None
        operator = str(expr.op)
        if matching is None:
            if left != right:
                raise Wrong(f"{sorted(left)} and {sorted(right)} never match")
            return left
        on = matching.type == LabelModifierType.Include
        _has(left & right, matching.labels if on else [], "both sides")
        keys = frozenset(matching.labels) if on else left - set(matching.labels)
        if not on and keys != right - set(matching.labels):
            raise Wrong(f"{sorted(left)} and {sorted(right)} never match, but for {matching.labels}")
        if operator in SETS:
            return left | right if operator == "or" else left
        assert modifier
        cardinality = str(modifier.card)
        if "ManyToOne" in cardinality:
            _has(right, modifier.group_labels or [], "the one side")
            return left | set(modifier.group_labels or [])
        if left != keys and right != keys:
            raise Wrong(f"{sorted(left)} and {sorted(right)}: many to one needs group_left")
        return keys

    def _vector(self, expr: Expr) -> Labels:
        labels = self._of(expr)
        if labels is None:
            raise Wrong("a number where a vector should be")
        return labels


def _has(labels: Labels, wanted: list[str], whose: str) -> None:
    if missing := set(wanted) - labels:
        raise Wrong(f"{whose} has no label {sorted(missing)}, but {sorted(labels)}")


def _is_a_counter(argument: Any) -> None:
    if isinstance(argument, MatrixSelector):
        name = argument.vector_selector.name or ""
        if not name.endswith(("_total", "_bucket", "_count", "_sum")):
            raise Wrong(f"{name} is no counter")
