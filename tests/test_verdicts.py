"""What a check refused stays refused, whoever asks, until it passes or somebody accepts it by name."""

import pytest

from k25_pipelines.storage.store import open_store
from k25_pipelines.verdicts import Verdict, VerdictError, accept, acceptance, require_passed, write_verdict


@pytest.fixture
def lake(tmp_path):
    return open_store(str(tmp_path))


def judge(lake, *, passed: bool, blocking: bool = True) -> None:
    verdict = Verdict(subject="abc", check="fill", passed=passed, blocking=blocking, figures={"fill": 0.5})
    write_verdict(lake, verdict)


def test_what_was_never_checked_may_be_used(lake):
    require_passed(lake, {"plan abc": "abc"})


def test_a_failure_is_named_with_its_figures_and_the_way_out(lake):
    judge(lake, passed=False)
    with pytest.raises(VerdictError, match=r"plan abc failed fill \(fill 0.5\); see it with: k25 checks abc. mend it"):
        require_passed(lake, {"plan abc": "abc"})


def test_a_failure_that_does_not_block_is_no_refusal(lake):
    judge(lake, passed=False, blocking=False)
    assert require_passed(lake, {"plan abc": "abc"}) is None
    judge(lake, passed=False)
    with pytest.raises(VerdictError):
        require_passed(lake, {"plan abc": "abc"})


def test_a_later_look_replaces_an_earlier_one(lake):
    judge(lake, passed=False)
    with pytest.raises(VerdictError):
        require_passed(lake, {"plan abc": "abc"})
    judge(lake, passed=True)
    assert require_passed(lake, {"plan abc": "abc"}) is None


def test_an_accepted_failure_is_no_refusal_and_says_who_and_why(lake):
    judge(lake, passed=False)
    accept(lake, "abc", "fill", author="someone", reason="short texts")
    require_passed(lake, {"plan abc": "abc"})
    told = acceptance(lake, "abc", "fill")
    assert (told["author"], told["reason"]) == ("someone", "short texts")


@pytest.mark.parametrize(("check", "reason"), [("fill", " "), ("other", "why not")])
def test_only_a_failure_is_accepted_and_only_with_a_reason(lake, check, reason):
    judge(lake, passed=False)
    with pytest.raises(VerdictError):
        accept(lake, "abc", check, author="someone", reason=reason)
