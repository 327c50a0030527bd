"""The report in docs/ is of the bundle in bundles/."""

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_the_committed_report_names_the_committed_bundles_digest():
    digest = hashlib.sha256((ROOT / "bundles/demo/bundle.toml").read_bytes()).hexdigest()
    report = (ROOT / "docs/evaluation.md").read_text()
    assert f"`{digest}`" in report, 'docs/evaluation.md is of another bundle: run `make evaluate EVALUATE="--out ../docs"`'
