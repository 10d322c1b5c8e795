"""Is a published classification report possible? Its own numbers answer, by arithmetic alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tutorkit.printed_table import (
    AVERAGES,
    HAIR,
    METRICS,
    Range,
    Table,
    accuracies,
    as_count,
    as_share,
    divide,
    f1_range,
    mean_range,
    read_table,
    short_name,
    weighted_range,
)

if TYPE_CHECKING:
    import pandas as pd

CLAIMS = {"f1": "f1-score"} | {name: name for name in (*METRICS, "accuracy")}
MAX_MATRICES = 20_000_000


@dataclass(frozen=True)
class Finding:
    """One printed number (or none) beside what the other printed numbers allow."""

    check: str
    printed: float | None
    low: float | None  # low..high: what the other printed numbers imply
    high: float | None
    verdict: str  # consistent, rounding, impossible, differs
    says: str
    decimals: int = 0  # of the printed number; 0 for a count of rows

    @property
    def implied(self) -> str:
        """The implied interval as text, with one decimal more than the printed number has."""
        if self.low is None or self.high is None:
            return ""
        digits = self.decimals + 1 if self.decimals else 0
        low, high = f"{self.low:,.{digits}f}", f"{self.high:,.{digits}f}"
        return low if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class AuditReport:
    """What `audit_report` found, in the order of its checks."""

    findings: tuple[Finding, ...]

    @property
    def possible(self) -> bool:
        """Whether no finding is "impossible"; it is no proof that the numbers were measured."""
        return all(f.verdict != "impossible" for f in self.findings)

    def to_frame(self) -> pd.DataFrame:
        """One row a finding, as text: check, printed, implied, verdict."""
        import pandas as pd

        found = self.findings
        printed = ["" if f.printed is None else f"{f.printed:,.{f.decimals}f}" for f in found]
        rows = [(f.check, p, f.implied, f.verdict) for f, p in zip(found, printed, strict=True)]
        return pd.DataFrame(rows, columns=["check", "printed", "implied", "verdict"])

    def __str__(self) -> str:
        return "\n".join(f"{f.verdict:<10}  {f.check}: {f.says}" for f in self.findings)


def audit_report(
    rows: Mapping[str, Any],
    *,
    decimals: int = 3,
    expected_support: Mapping[str, int] | int | None = None,
    claims: Mapping[str, float] | None = None,
    single_label: bool = True,
) -> AuditReport:
    """Check a printed classification report against itself, by interval arithmetic.

    A printed v with d decimals says that the true value lies in [v - 0.5·10^-d, v + 0.5·10^-d].
    With P, R, F1 and n of each class c and N = Σ n_c, the checks are:

    - F1 = 2PR/(P+R) for every class and the micro average (0 where P = R = 0);
    - macro averages are plain means; macro F1 may be the mean of the F1s (scikit-learn; eq. 2 of
      Opitz & Burst) or the F1 of the row's own mean P and mean R, the other definition they found;
    - weighted averages are Σ n_c·x_c / N; without supports, between the least and the greatest x_c;
    - one label a row: accuracy = micro P = micro R = micro F1 = weighted R = Σ n_c·R_c / N, and
      = macro R when all n_c are equal (each wrong row is one false positive, one false negative);
    - supports add up, and are the expected ones;
    - some confusion matrix gives the class rows. Two classes: TN = R_0·n_0 and TP = R_1·n_1 leave
      finitely many integer matrices, all are tried; for matrices of any size, FP = n_0 - TN and
      FN = n_1 - TP in P_0 and P_1 give
      n_1/n_0 = R_0(1-P_0) / (P_0(1-R_1)) = P_1(1-R_0) / (R_1(1-P_1)).
      More classes, or more than 20 million matrices: R_c·n_c/P_c rows were predicted as class c
      and these add up to N, a necessary condition only;
    - claims: some value in the table, printed or implied, rounds to the claimed one.

    Example:
        >>> row = {"precision": 0.8, "recall": 0.5, "f1-score": 0.7}
        >>> audit_report({"spam": row}).possible  # 2·0.8·0.5 / 1.3 = 0.615
        False

    Args:
        rows: Row name -> precision, recall, f1-score (or f1), support (may be missing): the shape
            of scikit-learn's `classification_report(output_dict=True)`. "micro avg", "macro avg",
            "weighted avg" are averages, "accuracy" is one number, every other row is a class.
        decimals: Decimals that the table prints; values with more are rounded to them first.
        expected_support: Rows of each class in the test set it should be: one number, or by class.
        claims: Headline numbers: F1, precision, recall or accuracy -> value. A claim is read with
            the decimals it has, at least 2 and at most `decimals`.
        single_label: False for several labels (or none) a row, or a report of some of the classes
            only: accuracy and confusion matrix are then not checked.

    Returns:
        The findings; `possible`, `to_frame()` and `str()` sum them up. Verdicts: "consistent" (the
        value recomputed from the printed ones rounds to the printed one), "rounding" (it does not,
        but some true values explain both), "impossible" (none does), "differs" (only not what was
        expected or claimed).

    Raises:
        ValueError: A value outside 0..1 or NaN, a missing key, no class row, a support that is no
            count, decimals < 1, an unknown claim or class name.

    Source: Opitz & Burst 2019 (arXiv:1911.03347), section 1. Testing printed numbers for being
    possible at all is the idea of the GRIM test (Brown & Heathers 2017, Social Psychological and
    Personality Science 8:363-369).
    """
    table = read_table(rows, decimals)
    # A report of one class is a part of a report: its other classes are not printed.
    whole = single_label and len(table.classes) > 1
    findings = [
        *_check_f1(table),
        *_check_averages(table),
        *(_check_accuracy(table) if whole else ()),
        *_check_supports(table, expected_support),
        *(_check_matrix(table) if whole else ()),
        *_check_claims(table, claims or {}, whole),
    ]
    return AuditReport(tuple(findings))


def _check_f1(table: Table) -> Iterator[Finding]:
    rows = {f"class {name}": row for name, row in table.classes.items()}
    rows |= {name: row for name, row in table.averages.items() if name == "micro avg"}
    for name, row in rows.items():
        implied = f1_range(row["precision"], row["recall"])
        yield _compare(f"F1 of {name}", row["f1-score"], implied, "2PR/(P+R)", table)


def _check_averages(table: Table) -> Iterator[Finding]:
    row = table.averages.get("macro avg", {})
    for metric, printed in row.items():
        check, implied = f"{short_name(metric)} of macro avg", mean_range(table.column(metric))
        found = _compare(check, printed, implied, "the mean of the classes", table)
        if metric == "f1-score" and found.verdict == "impossible":
            # Two definitions are in use, so only a number that fits neither is impossible.
            how = "the F1 of the row's own mean P and mean R (not the mean of the class F1s)"
            other = _compare(check, printed, f1_range(row["precision"], row["recall"]), how, table)
            found = found if other.verdict == "impossible" else other
        yield found
    for metric, printed in table.averages.get("weighted avg", {}).items():
        implied, how = weighted_range(table, metric, printed)
        yield _compare(f"{short_name(metric)} of weighted avg", printed, implied, how, table)


def _check_accuracy(table: Table) -> Iterator[Finding]:
    printed = accuracies(table)
    if not printed:
        return
    (name, first), *others = printed.items()
    known, how = weighted_range(table, "recall", first)
    checks = [(f"{name} from class recalls", first, how)]
    how = f"with one label a row it equals {name}, which"
    checks += [(f"{other} = {name}", value, how) for other, value in others]
    for check, value, how in checks:
        found = _compare(check, value, known, how, table)
        yield found
        # Narrowed by each number that fits: all of them are one and the same true value.
        if found.verdict != "impossible":
            center = first.value if value is first else known.value
            known = Range(max(known.low, value.low), center, min(known.high, value.high))
        elif value is first:
            known = first


def _check_supports(
    table: Table, expected_support: Mapping[str, int] | int | None
) -> Iterator[Finding]:
    for name in table.averages:
        if table.counts and name in table.supports:
            found, total = table.supports[name], sum(table.counts)
            verdict = "consistent" if found == total else "impossible"
            says = f"the classes have {total:,} rows together, printed is {found:,}."
            yield Finding(f"support of {name}", found, total, total, verdict, says)
    if expected_support is None:
        return
    if not isinstance(expected_support, Mapping):
        expected_support = dict.fromkeys(table.classes, expected_support)
    for name, expected in expected_support.items():
        if name not in table.classes:
            raise ValueError(
                f"expected the classes {list(table.classes)} in expected_support, found {name!r}: "
                "use the names of the rows."
            )
        expected = as_count(expected, f"expected_support of {name}")
        found = table.supports.get(name)
        verdict = "consistent" if found == expected else "differs"
        says = (
            f"expected {expected:,} rows, printed is {'none' if found is None else f'{found:,}'}."
        )
        yield Finding(f"support of class {name}", found, expected, expected, verdict, says)


def _check_matrix(table: Table) -> Iterator[Finding]:
    if len(table.classes) == 2:
        yield _check_ratio(table)
    if table.counts is None:
        return
    if len(table.classes) == 2:
        tried = math.prod(high - low + 1 for low, high in _hits(table))
        if tried <= MAX_MATRICES:
            fits, example = 0, ""
            for matrices in _matrices(table):
                if len(matrices) and not fits:
                    example = f", the first is {matrices[0].tolist()}"
                fits += len(matrices)
            verdict = "consistent" if fits else "impossible"
            says = f"{fits:,} of {tried:,} matrices with these recalls fit both rows{example}."
            yield Finding("confusion matrix", None, None, None, verdict, says)
            return
    total = sum(table.counts)
    parts = list(zip(table.counts, table.column("recall"), table.column("precision"), strict=True))
    low = math.fsum(n * r.low / p.high for n, r, p in parts)
    # No class is predicted more often than there are rows; where P may be 0 nothing else is known.
    high = math.fsum(min(total, n * r.high / p.low) if p.low else total for n, r, p in parts)
    verdict = "consistent" if low <= total + HAIR * total and total <= high else "impossible"
    says = f"Σ R·n/P is {low:,.0f} to {high:,.0f}, must be {total:,} (a necessary condition only)."
    yield Finding("rows predicted", total, low, high, verdict, says)


def _check_ratio(table: Table) -> Finding:
    """n_1/n_0 once from P_0 and once from P_1, each monotone in every printed number."""
    (p0, p1), (r0, r1) = table.column("precision"), table.column("recall")
    low0 = divide(r0.low * (1 - p0.high), p0.high * (1 - r1.low))
    high0 = divide(r0.high * (1 - p0.low), p0.low * (1 - r1.high))
    low1 = divide(p1.low * (1 - r0.high), r1.high * (1 - p1.low))
    high1 = divide(p1.high * (1 - r0.low), r1.low * (1 - p1.high))
    low, high = max(low0, low1), min(high0, high1)
    first, second = table.classes
    says = f"P of {first} needs {low0:.3f} to {high0:.3f}, P of {second} {low1:.3f} to {high1:.3f}"
    printed = None
    if table.counts:
        printed = divide(*reversed(table.counts))
        says += f", the supports give {printed:.3f}"
    overlap = low <= high
    fits = overlap and (printed is None or low <= printed <= high)
    says += "." if overlap else ": no confusion matrix of any size has both."
    ends, verdict = (low, high) if overlap else (None, None), "consistent" if fits else "impossible"
    check = f"rows of {second} / rows of {first}"
    return Finding(check, printed, *ends, verdict, says, table.decimals)


def _check_claims(table: Table, claims: Mapping[str, float], whole: bool) -> Iterator[Finding]:
    for name, claim in claims.items():
        metric = CLAIMS.get(name.lower())
        if metric is None:
            raise ValueError(
                f"expected claims about {list(CLAIMS)}, found {name!r}: claim one of these."
            )
        claim = as_share(claim, f"the claim {name}", table.decimals).value
        # 0.85 may stand for a printed 0.853, but 0.9 is taken for 0.90.
        digits = min(2, table.decimals)
        while abs(round(claim, digits) - claim) > HAIR:
            digits += 1
        check, half = f"claim {name}", 0.5 * 10**-digits + HAIR
        near = []
        for where, found in _candidates(table, metric, whole):
            fits = found.low - half <= claim <= found.high + half
            distance = round(abs(found.value - claim), table.decimals)
            near.append((not fits, distance, len(near), where, found))
        if not near:
            yield Finding(check, claim, None, None, "differs", "none is in the table.", digits)
            continue
        misses, _, _, where, found = min(near)
        verdict, which = ("differs", "is nearest to") if misses else ("consistent", "fits")
        says = f"{where}, {found.value:.{table.decimals}f}, {which} {claim:.{digits}f}."
        yield Finding(check, claim, found.low, found.high, verdict, says, digits)


def _candidates(table: Table, metric: str, whole: bool) -> list[tuple[str, Range]]:
    """Every value of a metric that the table prints, then every one that it implies."""
    if metric == "accuracy":
        column, implied = table.column("recall"), []
        printed = accuracies(table) if whole else {"accuracy": table.accuracy}
    else:
        column, rows = table.column(metric), table.classes | table.averages
        implied = [("the mean of the classes", mean_range(column))]
        printed = {f"{short_name(metric)} of {name}": row[metric] for name, row in rows.items()}
    if table.counts and (whole or metric != "accuracy"):
        by_support = mean_range(column, table.counts)
        implied.append(("the support-weighted mean of the classes", by_support))
    if metric == "f1-score":
        pairs = {name: (row["precision"], row["recall"]) for name, row in rows.items()}
        means = [mean_range(table.column(name)) for name in ("precision", "recall")]
        pairs["the class means"] = (means[0], means[1])
        # The F1 of a weighted (or samples) row's P and R is no F1 that anybody defines.
        pairs = {name: pair for name, pair in pairs.items() if name not in AVERAGES[2:]}
        implied += [(f"2PR/(P+R) of {name}", f1_range(*pair)) for name, pair in pairs.items()]
    return [(name, Range(*[v.value] * 3)) for name, v in printed.items() if v] + implied


def _hits(table: Table) -> list[tuple[int, int]]:
    """For each class the fewest and the most correct rows that round to its recall."""
    hits = []
    for n, recall in zip(table.counts, table.column("recall"), strict=True):
        undefined_fits = recall.low <= 0 or recall.high >= 1  # 0/0 is printed as 0 or as 1
        low, high = math.ceil(recall.low * n), math.floor(recall.high * n)
        hits.append((low, high) if n or undefined_fits else (0, -1))
    return hits


def _matrices(table: Table, chunk: int = 1_000_000) -> Iterator[np.ndarray]:
    """The matrices [[TN, FP], [FN, TP]] that give both class rows, in arrays (k, 2, 2)."""
    (n0, n1), (row0, row1) = table.counts, table.classes.values()
    (low0, high0), (low1, high1) = _hits(table)
    width = high1 - low1 + 1
    total = (high0 - low0 + 1) * width
    for start in range(0, total, chunk):
        index = np.arange(start, min(start + chunk, total))
        tn, tp = low0 + index // width, low1 + index % width
        fp, fn = n0 - tn, n1 - tp
        fits = (
            _fits(tn, tn + fn, row0["precision"])
            & _fits(tp, tp + fp, row1["precision"])
            & _fits(2 * tn, 2 * tn + fn + fp, row0["f1-score"])
            & _fits(2 * tp, 2 * tp + fp + fn, row1["f1-score"])
        )
        yield np.stack([tn, fp, fn, tp], axis=1)[fits].reshape(-1, 2, 2)


def _fits(part: np.ndarray, whole: np.ndarray, printed: Range) -> np.ndarray:
    share = part / np.maximum(whole, 1)
    # 0/0 is printed as 0 (scikit-learn's default) or as 1.
    inside = (printed.low <= share) & (share <= printed.high)
    return inside | ((whole == 0) & (printed.high >= 1))


def _compare(check: str, printed: Range, implied: Range, how: str, table: Table) -> Finding:
    digits = table.decimals
    if printed.low <= implied.value <= printed.high:
        verdict = "consistent"
    elif implied.low <= printed.high and printed.low <= implied.high:
        verdict = "rounding"
    else:
        verdict = "impossible"
    low, value, high = (f"{number:.{digits + 1}f}" for number in implied)
    says = f"{how} is {value} ({low} to {high}), printed is {printed.value:.{digits}f}."
    return Finding(check, printed.value, implied.low, implied.high, verdict, says, digits)
