"""Printed reports against arithmetic by hand, scikit-learn and brute force."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
from sklearn.metrics import classification_report

import tutorkit.audit
from tutorkit.audit import AuditReport, Finding
from tutorkit.metrics import audit_report
from tutorkit.printed_table import read_table


def row(precision: float, recall: float, f1: float, support: int | None = None) -> dict:
    found = {"precision": precision, "recall": recall, "f1-score": f1}
    return found if support is None else found | {"support": support}


def verdicts(report: AuditReport) -> dict[str, str]:
    return {finding.check: finding.verdict for finding in report.findings}


def finding(report: AuditReport, check: str) -> Finding:
    return next(f for f in report.findings if f.check == check)


PUBLISHED = {
    "0": row(0.830, 0.817, 0.821, 25000),
    "1": row(0.854, 0.879, 0.865, 25000),
    "micro avg": row(0.835, 0.837, 0.835, 50000),
    "macro avg": row(0.837, 0.829, 0.833, 50000),
    "weighted avg": row(0.835, 0.837, 0.835, 50000),
}


def test_a_published_table_by_hand() -> None:
    report = audit_report(PUBLISHED, expected_support=12500, claims={"F1": 0.853})
    assert verdicts(report) == {
        # 2·0.8295·0.8165/1.646 = 0.8229 at least, and 0.821 is printed for 0.8205..0.8215.
        "F1 of class 0": "impossible",
        # 2·0.8535·0.8785/1.732 = 0.8658 > 0.8655
        "F1 of class 1": "impossible",
        # 2·0.835·0.837/1.672 = 0.8360 prints 0.836, but 2·0.8345·0.8365/1.671 = 0.83550 touches.
        "F1 of micro avg": "rounding",
        # (0.830 + 0.854)/2 = 0.842, off by more than 0.001 from 0.837
        "precision of macro avg": "impossible",
        # (0.817 + 0.879)/2 = 0.848, printed 0.829
        "recall of macro avg": "impossible",
        # (0.821 + 0.865)/2 = 0.843 is not 0.833, but 2·0.837·0.829/1.666 = 0.83298 is.
        "F1 of macro avg": "consistent",
        # Equal supports: weighted = plain means, 0.842, 0.848, 0.843; printed 0.835, 0.837, 0.835.
        "precision of weighted avg": "impossible",
        "recall of weighted avg": "impossible",
        "F1 of weighted avg": "impossible",
        # The accuracy is (0.817 + 0.879)/2 = 0.848, and five printed numbers should all be it.
        "recall of micro avg from class recalls": "impossible",
        "precision of micro avg = recall of micro avg": "impossible",
        "F1 of micro avg = recall of micro avg": "impossible",
        "recall of weighted avg = recall of micro avg": "consistent",
        "recall of macro avg = recall of micro avg": "impossible",
        "support of micro avg": "consistent",
        "support of macro avg": "consistent",
        "support of weighted avg": "consistent",
        # IMDB has 12,500 of each in train and in test: 25,000 of each is both together.
        "support of class 0": "differs",
        "support of class 1": "differs",
        # 0.817·0.170/(0.830·0.121) = 1.383 and 0.854·0.183/(0.879·0.146) = 1.218; supports: 1.
        "rows of 1 / rows of 0": "impossible",
        # TN in 20412.5..20437.5 and TP in 21962.5..21987.5: 25·25 to try.
        "confusion matrix": "impossible",
        # F1 printed 0.821..0.865, none of them 0.853; implied 0.823, 0.866, 0.836, 0.843, 0.845.
        "claim F1": "differs",
    }
    assert not report.possible
    assert finding(report, "confusion matrix").says.startswith("0 of 625 matrices")
    assert "1.372 to 1.394, P of 1 1.209 to 1.227" in finding(report, "rows of 1 / rows of 0").says
    assert "not the mean of the class F1s" in finding(report, "F1 of macro avg").says
    f1 = finding(report, "F1 of class 0")
    assert (f1.printed, f1.implied) == (0.821, "0.8229 to 0.8239")
    assert (f1.low, f1.high) == pytest.approx((0.822949, 0.823949), abs=1e-6)


def test_text_and_frame_are_rounded() -> None:
    report = audit_report(PUBLISHED, expected_support=12500, claims={"F1": 0.853})
    lines = str(report).splitlines()
    assert len(lines) == len(report.findings) == len(report.to_frame())
    assert lines[0] == (
        "impossible  F1 of class 0: 2PR/(P+R) is 0.8234 (0.8229 to 0.8239), printed is 0.821."
    )
    frame = report.to_frame().set_index("check")
    assert list(report.to_frame().columns) == ["check", "printed", "implied", "verdict"]
    assert frame.loc["F1 of class 0"].tolist() == ["0.821", "0.8229 to 0.8239", "impossible"]
    assert frame.loc["support of class 1"].tolist() == ["25,000", "12,500", "differs"]
    assert frame.loc["confusion matrix"].tolist() == ["", "", "impossible"]


def sklearn_rows(seed: int, num_labels: int, decimals: int, n: int = 400) -> tuple[dict, list]:
    """The rounded report of random predictions, and the labels with the predictions."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(num_labels, n, p=rng.dirichlet(np.ones(num_labels)))
    predictions = np.where(rng.random(n) < rng.random(), labels, rng.integers(num_labels, size=n))
    rows = classification_report(
        labels, predictions, labels=range(num_labels), output_dict=True, zero_division=0
    )
    if "micro avg" in rows:  # only if a class has neither rows nor predictions
        rows["accuracy"] = rows["micro avg"]["recall"]
    rows["micro avg"] = dict.fromkeys(("precision", "recall", "f1-score"), rows["accuracy"])
    for name, found in rows.items():
        if name == "accuracy":
            rows[name] = round(found, decimals)
        else:
            rows[name] = {k: v if k == "support" else round(v, decimals) for k, v in found.items()}
    return rows, [labels, predictions]


def without_supports(rows: dict) -> dict:
    return {
        name: {k: v for k, v in found.items() if k != "support"} if name != "accuracy" else found
        for name, found in rows.items()
    }


@pytest.mark.parametrize("decimals", [2, 3])
@pytest.mark.parametrize("num_labels", [2, 3, 4, 5])
def test_a_true_report_is_never_called_impossible(num_labels: int, decimals: int) -> None:
    # Few rows too: classes never met, never predicted, never right.
    for seed, n in itertools.product(range(25), (4, 30, 400, 5000)):
        rows, _ = sklearn_rows(seed, num_labels, decimals, n)
        report = audit_report(rows, decimals=decimals)
        assert report.possible, f"seed {seed}, n {n}\n{report}"
        checks = verdicts(report)
        assert ("confusion matrix" in checks) == (num_labels == 2)
        assert ("rows predicted" in checks) == (num_labels > 2)
        bare = audit_report(without_supports(rows), decimals=decimals)
        assert bare.possible, f"seed {seed}, n {n}\n{bare}"
        assert "confusion matrix" not in verdicts(bare)


def test_undefined_numbers_may_be_printed_as_one() -> None:
    labels, predictions = np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0])
    for labels_, predictions_ in ((labels, predictions), (predictions, labels)):
        rows = classification_report(labels_, predictions_, output_dict=True, zero_division=1)
        assert audit_report(rows).possible


@pytest.mark.parametrize("seed", range(8))
def test_the_true_matrix_of_a_small_report_is_found(seed: int) -> None:
    rows, (labels, predictions) = sklearn_rows(seed, 2, 3, n=40)
    tn, fp = (int(((labels == 0) & (predictions == j)).sum()) for j in (0, 1))
    fn, tp = (int(((labels == 1) & (predictions == j)).sum()) for j in (0, 1))
    # With at most 40 rows a class, neighbouring recalls differ by more than 0.001.
    says = finding(audit_report(rows), "confusion matrix").says
    assert says == (
        f"1 of 1 matrices with these recalls fit both rows, the first is [[{tn}, {fp}], "
        f"[{fn}, {tp}]]."
    )


def test_matrices_against_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    n0, n1 = 400, 600
    rows = {"a": row(0.51, 0.67, 0.58, n0), "b": row(0.72, 0.58, 0.64, n1)}
    fits, hits = [], set()
    for tn, tp in itertools.product(range(n0 + 1), range(n1 + 1)):
        fp, fn = n0 - tn, n1 - tp
        if abs(tn / n0 - 0.67) > 0.005 + 1e-9 or abs(tp / n1 - 0.58) > 0.005 + 1e-9:
            continue
        hits.add((tn, tp))
        found = (tn / (tn + fn), 2 * tn / (2 * tn + fp + fn))
        found += (tp / (tp + fp), 2 * tp / (2 * tp + fp + fn))
        if all(
            abs(x - y) <= 0.005 + 1e-9 for x, y in zip(found, (0.51, 0.58, 0.72, 0.64), strict=True)
        ):
            fits.append([[tn, fp], [fn, tp]])
    assert 1 < len(fits) < len(hits)
    says = finding(audit_report(rows, decimals=2), "confusion matrix").says
    assert says == (
        f"{len(fits)} of {len(hits)} matrices with these recalls fit both rows, "
        f"the first is {fits[0]}."
    )
    # In pieces or at once, the search is the same.
    table = read_table(rows, 2)
    pieces = list(tutorkit.audit._matrices(table, chunk=2))
    assert len(pieces) > 1 and np.concatenate(pieces).tolist() == fits
    # Too large a search leaves the necessary condition.
    monkeypatch.setattr(tutorkit.audit, "MAX_MATRICES", len(hits) - 1)
    checks = verdicts(audit_report(rows, decimals=2))
    assert "confusion matrix" not in checks and checks["rows predicted"] == "consistent"


def test_a_large_search_is_not_started() -> None:
    rows = {"a": row(0.9, 0.9, 0.9, 10**8), "b": row(0.9, 0.9, 0.9, 10**8)}
    report = audit_report(rows, decimals=1)
    assert verdicts(report)["rows predicted"] == "consistent"
    assert "a necessary condition only" in finding(report, "rows predicted").says


def test_rows_predicted_by_hand() -> None:
    # 10·0.8/0.5 + 10·0.5/0.5 + 10·0.5/0.5 = 16 + 10 + 10 = 36 predictions for 30 rows
    rows = {
        name: row(0.5, r, f, 10)
        for name, r, f in zip("abc", (0.8, 0.5, 0.5), (0.62, 0.5, 0.5), strict=True)
    }
    report = audit_report(rows, decimals=2)
    found = finding(report, "rows predicted")
    assert (found.verdict, found.printed) == ("impossible", 30)
    low = (10 * 0.795 + 10 * 0.495 + 10 * 0.495) / 0.505
    high = (10 * 0.805 + 10 * 0.505 + 10 * 0.505) / 0.495
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-5)
    assert [f.check for f in report.findings if f.verdict == "impossible"] == ["rows predicted"]


def test_class_ratio_needs_no_supports() -> None:
    # TN 60, FP 40, FN 50, TP 150: R_0 = 0.6, P_0 = 60/110, R_1 = 0.75, P_1 = 150/190; n_1/n_0 = 2
    rows = {"a": row(0.545, 0.600, 0.571), "b": row(0.789, 0.750, 0.769)}
    found = finding(audit_report(rows), "rows of b / rows of a")
    assert found.verdict == "consistent" and found.printed is None
    assert found.low < 2 < found.high and found.high - found.low < 0.03
    # The same recalls with P_1 = 0.7 need 0.7·0.4/(0.75·0.3) = 1.244 times as many.
    rows["b"] = row(0.700, 0.750, 0.724)
    report = audit_report(rows)
    assert [f.check for f in report.findings if f.verdict == "impossible"] == [
        "rows of b / rows of a"
    ]
    assert "no confusion matrix of any size" in str(report)
    # Supports of another ratio than both precisions need.
    rows = {"a": row(0.545, 0.600, 0.571, 100), "b": row(0.789, 0.750, 0.769, 100)}
    found = finding(audit_report(rows), "rows of b / rows of a")
    assert (found.verdict, found.printed) == ("impossible", 1)


# Each kind of number, and the check that has to notice when it moves.
KINDS = [
    ("0", "precision", "F1 of class 0"),
    ("0", "recall", "F1 of class 0"),
    ("0", "f1-score", "F1 of class 0"),
    ("0", "support", "support of macro avg"),
    ("micro avg", "precision", "precision of micro avg = accuracy"),
    ("micro avg", "recall", "recall of micro avg = accuracy"),
    ("micro avg", "f1-score", "F1 of micro avg = accuracy"),
    ("macro avg", "precision", "precision of macro avg"),
    ("macro avg", "recall", "recall of macro avg"),
    ("macro avg", "f1-score", "F1 of macro avg"),
    ("macro avg", "support", "support of macro avg"),
    ("weighted avg", "precision", "precision of weighted avg"),
    ("weighted avg", "recall", "recall of weighted avg"),
    ("weighted avg", "f1-score", "F1 of weighted avg"),
    ("accuracy", None, "accuracy from class recalls"),
]


@pytest.mark.parametrize(("name", "key", "check"), KINDS)
@pytest.mark.parametrize("num_labels", [2, 4])
def test_one_changed_number_is_impossible(
    num_labels: int, name: str, key: str | None, check: str
) -> None:
    rows, _ = sklearn_rows(3, num_labels, 3)
    assert audit_report(rows).possible
    for sign in (1, -1):
        changed = copy.deepcopy(rows)
        step = sign * (3 if key == "support" else 0.03)
        if key is None:
            changed[name] = round(rows[name] + step, 3)
        else:
            changed[name][key] = round(rows[name][key] + step, 3)
        report = audit_report(changed)
        assert verdicts(report)[check] == "impossible", str(report)


def test_a_class_row_that_is_consistent_in_itself_still_needs_a_matrix() -> None:
    # P and R of class a exchanged: its F1 stays, no check but those of the matrix can see it.
    rows = {"a": row(0.600, 0.545, 0.571, 100), "b": row(0.789, 0.750, 0.769, 200)}
    impossible = [f.check for f in audit_report(rows).findings if f.verdict == "impossible"]
    assert impossible == ["rows of b / rows of a", "confusion matrix"]


@pytest.mark.parametrize("name", ["a", "b"])
def test_the_f1_of_each_class_takes_part_in_the_search(name: str) -> None:
    rows = {"a": row(0.545, 0.600, 0.571, 100), "b": row(0.789, 0.750, 0.769, 200)}
    assert verdicts(audit_report(rows))["confusion matrix"] == "consistent"
    rows[name]["f1-score"] += 0.02
    assert verdicts(audit_report(rows))["confusion matrix"] == "impossible"


def test_the_recall_of_no_rows_is_printed_as_0_or_1() -> None:
    for recall, verdict in ((0, "consistent"), (1, "consistent"), (0.5, "impossible")):
        rows = {"a": row(1, 0.5, 0.667, 10), "b": row(0, recall, 0, 0)}
        assert verdicts(audit_report(rows))["confusion matrix"] == verdict


def test_micro_precision_equals_micro_recall_for_one_label_a_row() -> None:
    rows = {
        "a": row(0.8, 0.8, 0.8),
        "b": row(0.8, 0.8, 0.8),
        "micro avg": row(0.795, 0.805, 0.8),
    }
    report = audit_report(rows)
    assert verdicts(report)["precision of micro avg = recall of micro avg"] == "impossible"
    # Several labels a row: micro P and R are two numbers.
    assert audit_report(rows, single_label=False).possible


def test_rounded_equals_have_one_value_in_common() -> None:
    # 0.834, 0.835 and 0.836: each neighbour may be the same number, all three may not.
    rows = {"a": row(0.9, 0.9, 0.9), "b": row(0.8, 0.8, 0.8), "accuracy": 0.835}
    rows["micro avg"] = row(0.836, 0.834, 0.835)
    found = verdicts(audit_report(rows))
    assert found["recall of micro avg = accuracy"] == "rounding"
    assert found["precision of micro avg = accuracy"] == "impossible"
    # (100·0.9 + 200·0.8)/300 = 0.8333 prints 0.833, and 0.834 only when the recalls were rounded
    # down; 0.833 is then compared with the printed 0.834.
    rows = {"a": row(0.9, 0.9, 0.9, 100), "b": row(0.8, 0.8, 0.8, 200), "accuracy": 0.834}
    found = verdicts(audit_report(rows | {"micro avg": row(0.833, 0.833, 0.833)}))
    assert found["accuracy from class recalls"] == "rounding"
    assert found["recall of micro avg = accuracy"] == "rounding"


def test_averages_without_supports_lie_between_the_classes() -> None:
    rows = {"a": row(0.9, 0.9, 0.9), "b": row(0.8, 0.8, 0.8)}
    assert audit_report(rows | {"accuracy": 0.83, "weighted avg": row(0.84, 0.83, 0.88)}).possible
    report = audit_report(rows | {"accuracy": 0.95, "weighted avg": row(0.79, 0.91, 0.79)})
    assert {f.check for f in report.findings if f.verdict == "impossible"} == {
        "accuracy from class recalls",
        "precision of weighted avg",
        "recall of weighted avg",
        "F1 of weighted avg",
        "recall of weighted avg = accuracy",
    }


def test_either_macro_f1_will_do_and_the_finding_says_which() -> None:
    # Mean of F1s (0.327 + 0.327)/2; F1 of the means 2·0.55·0.55/1.1 (Opitz & Burst 2019).
    rows = {"a": row(0.9, 0.2, 0.327), "b": row(0.2, 0.9, 0.327)}
    for f1, verdict, says in (
        (0.327, "consistent", "the mean of the classes is 0.3270"),
        (0.55, "consistent", "not the mean of the class F1s"),
        (0.45, "impossible", "the mean of the classes is 0.3270"),
    ):
        report = audit_report(rows | {"macro avg": row(0.55, 0.55, f1)}, single_label=False)
        found = finding(report, "F1 of macro avg")
        assert found.verdict == verdict and says in found.says


def test_only_class_rows() -> None:
    report = audit_report({"a": {"precision": 0.8, "recall": 0.5, "f1": 0.615}})
    assert verdicts(report) == {"F1 of class a": "consistent"}
    # A single class says nothing about a matrix, P = 0.8 would be impossible with no other class.
    report = audit_report({"a": row(0.8, 0.5, 0.615, 10), "macro avg": row(0.8, 0.5, 0.615, 10)})
    assert report.possible and "confusion matrix" not in verdicts(report)
    assert audit_report({"a": row(0, 0, 0)}).possible
    assert not audit_report({"a": row(0, 0, 0.01)}).possible


def test_expected_support_by_class_or_missing() -> None:
    rows = {"a": row(0.8, 0.8, 0.8, 10), "b": row(0.8, 0.8, 0.8)}
    report = audit_report(rows, expected_support={"a": 10, "b": 10})
    found = verdicts(report)
    assert found["support of class a"] == "consistent"
    assert found["support of class b"] == "differs"
    assert finding(report, "support of class b").says == "expected 10 rows, printed is none."
    assert report.possible


@pytest.mark.parametrize(
    ("claims", "verdict", "says"),
    [
        # TN 60, FP 40, FN 50, TP 150: accuracy 210/300 = 0.7
        ({"F1": 0.769}, "consistent", "F1 of b, 0.769, fits 0.769."),
        ({"f1-score": 0.77}, "consistent", "F1 of b, 0.769, fits 0.77."),
        ({"F1": 0.67}, "consistent", "the mean of the classes, 0.670, fits 0.67."),
        ({"F1": 0.703}, "consistent", "the support-weighted mean of the classes, 0.703, fits"),
        ({"F1": 0.671}, "consistent", "2PR/(P+R) of the class means, 0.671, fits 0.671."),
        ({"F1": 0.790}, "differs", "F1 of b, 0.769, is nearest to 0.79."),
        ({"accuracy": 0.7}, "consistent", "the support-weighted mean of the classes, 0.700, fi"),
        ({"Accuracy": 0.75}, "differs", "the support-weighted mean of the classes, 0.700, is ne"),
        ({"precision": 0.545}, "consistent", "precision of a, 0.545, fits 0.545."),
        ({"recall": np.float64(0.6)}, "consistent", "recall of a, 0.600, fits 0.60."),
        ({"recall": 0.61}, "differs", "recall of a, 0.600, is nearest to 0.61."),
    ],
)
def test_claims(claims: dict, verdict: str, says: str) -> None:
    rows = {"a": row(0.545, 0.600, 0.571, 100), "b": row(0.789, 0.750, 0.769, 200)}
    found = audit_report(rows, claims=claims).findings[-1]
    assert found.verdict == verdict
    assert found.says.startswith(says)


def test_a_claim_may_be_the_f1_of_a_macro_row_but_not_of_a_weighted_one() -> None:
    # 2·0.7·0.5/1.2 = 0.583 and 2·0.8·0.4/1.2 = 0.533
    rows = GOOD | {"macro avg": row(0.7, 0.5, 0.6), "weighted avg": row(0.8, 0.4, 0.6)}
    found = audit_report(rows, claims={"F1": 0.583, "f1": 0.533}).findings[-2:]
    assert [f.verdict for f in found] == ["consistent", "differs"]
    assert found[0].says == "2PR/(P+R) of macro avg, 0.583, fits 0.583."


def test_a_claim_about_what_no_table_implies_differs() -> None:
    rows = {"a": row(0.545, 0.600, 0.571), "b": row(0.789, 0.750, 0.769)}
    found = audit_report(rows, claims={"accuracy": 0.7}).findings[-1]
    assert (found.verdict, found.low, found.implied) == ("differs", None, "")
    assert audit_report(rows | {"accuracy": 0.7}, claims={"accuracy": 0.7}).possible


def test_numpy_numbers_are_numbers() -> None:
    rows = {"a": row(*np.float32([0.8, 0.5, 0.615])), "b": row(*np.array([0.5, 0.8, 0.615]))}
    rows["a"]["support"], rows["b"]["support"] = np.int64(10), np.float64(10)
    assert verdicts(audit_report(rows))["F1 of class a"] == "consistent"


GOOD = {"a": row(0.8, 0.5, 0.615, 10), "b": row(0.5, 0.8, 0.615, 10)}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({"a": row(80, 0.5, 0.6)}, {}, "precision of a between 0 and 1, found 80: divide percent"),
        ({"a": row(0.8, -0.1, 0.6)}, {}, "recall of a between 0 and 1, found -0.1"),
        ({"a": row(0.8, 0.5, float("nan"))}, {}, "F1 of a between 0 and 1, found nan"),
        ({"a": row(0.8, 0.5, "0.6")}, {}, "F1 of a between 0 and 1, found '0.6'"),
        (GOOD | {"accuracy": 1.2}, {}, "accuracy between 0 and 1, found 1.2"),
        ({"a": {"precision": 0.8, "f1": 0.6}}, {}, "in row a, found no recall: copy all three"),
        ({"a": 0.8}, {}, "expected row a as a mapping, found 0.8"),
        ({"macro avg": row(0.8, 0.5, 0.6)}, {}, "one class row, found .'macro avg'.: add the"),
        ({}, {}, r"expected at least one class row, found \[\]"),
        ({"a": row(0.8, 0.5, 0.6, -1)}, {}, "support of a as a count of rows, found -1"),
        ({"a": row(0.8, 0.5, 0.6, 2.5)}, {}, "support of a as a count of rows, found 2.5"),
        ({"a": row(0.8, 0.5, 0.6, float("inf"))}, {}, "support of a as a count .* found inf"),
        ({"a": row(0, 0, 0, 0)}, {}, "found only supports of 0"),
        (GOOD, {"decimals": 0}, "expected decimals >= 1, found 0"),
        (GOOD, {"expected_support": -5}, "expected_support of a as a count of rows, found -5"),
        (GOOD, {"expected_support": {"c": 5}}, r"classes \['a', 'b'\] .* found 'c'"),
        (GOOD, {"claims": {"BLEU": 0.5}}, "expected claims about .* found 'BLEU'"),
        (GOOD, {"claims": {"F1": 61.5}}, "the claim F1 between 0 and 1, found 61.5"),
    ],
)
def test_bad_input_is_refused(rows: dict, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        audit_report(rows, **options)
