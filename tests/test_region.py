"""The region of a known issue: what it reads, what it means, and where it points when it can't be read."""

import pytest

from attnspec.conformance.known.draft import guess
from attnspec.conformance.known.region import Region, RegionError
from attnspec.conformance.problems.case import Case

CASE = Case(dtype="bfloat16", heads="4/2", i=5, j=3, d=16, e=24, causal=True, mask="bj")


@pytest.mark.parametrize(
    "text",
    [
        'causal and i > j and dtype == "bfloat16"',
        "not scaled and scale == 0.25",
        'mask in ("padding", "bj") and bias not in ("ij", "hij")',
        "1 < j < i <= 5",
        "e != d and h == 2 * g and b == 1",
        "(i - j) % 2 == 0 or j // 2 > 100",
        '"gqa" == sharing',
        "-i < 0 and d in (16, 32)",
        "causal\n  and j > 1",
    ],
)
def test_what_holds(text):
    assert Region.parse(text)(CASE)
    assert not Region.parse(f"not ({text})")(CASE)


def test_sizes_that_a_case_leaves_out():
    assert Region.parse("j == 7 and e == 8 and g == 1")(Case(heads="2/shared", i=7))
    assert Region.parse("scaled and scale <= 0")(Case(scale=0.0))
    assert not Region.parse("scale <= 0")(Case())


@pytest.mark.parametrize(
    ("text", "column", "what"),
    [
        ("", 0, "not a valid expression"),
        ("causal and )", 11, "not a valid expression"),
        ("causal and i >> j", 11, "not a condition"),
        ("causal and length > 3", 11, "unknown name 'length'; choose from dtype, mask"),
        ('causal and mask == "gas"', 19, 'it can be "none", "padding"'),
        ('dtype == "float8"', 9, 'it can be "float32"'),
        ('mask in ("padding", "gas")', 20, "mask can't be this"),
        ('dtype < "float32"', 0, "compare it with =="),
        ("i", 0, "not true or false by itself"),
        ("causal == True", 0, "write `causal` or `not causal`"),
        ("j % 0 == 1", 4, "not zero"),
        ("j % i == 1", 4, "not zero"),
        ("i in 3", 5, "several values in parentheses"),
        ("i is j", 5, "are compared with"),
        ('i == "5"', 5, "not a number"),
        ("i ** 9 > 2", 0, "not a number"),
        ("i == True", 5, "not a number"),
        ("causal if scaled else causal", 0, "not a condition"),
        ("i.real > 1", 0, "not a number"),
        ("[causal]", 0, "not a condition"),
        ("(causal := True)", 1, "not a condition"),
        ("f'{causal}'", 0, "not a condition"),
        ('__import__("os").abort()', 0, "not a condition"),
        ("(lambda: causal)()", 0, "not a condition"),
        ("causal\0", 0, "not a valid expression"),
        ("(" * 300 + "causal" + ")" * 300, 0, "not a valid expression"),
        ("heads == 2", 0, "unknown name 'heads'"),
    ],
)
def test_what_is_refused_and_where(text, column, what):
    with pytest.raises(RegionError) as error:
        Region.parse(text)
    message, _, pointer = str(error.value).splitlines()[0], *str(error.value).splitlines()[-2:]
    assert what in message
    if "\0" not in text and len(text) < 100:
        assert pointer == " " * (4 + column) + "^"


def test_a_guess_says_what_separates_and_no_more():
    failing = [Case(causal=True, i=5, j=3), Case(causal=True, i=9, j=2, dtype="float16", mask="ij")]
    passing = [Case(causal=True, i=3, j=5), Case(i=5, j=3), Case(causal=True, i=4)]
    region = guess(failing, passing)
    assert region.text in ("i > j and causal", "causal and i > j")
    assert all(map(region, failing))
    assert not any(map(region, passing))
    assert guess(failing, []).text == "b >= 1"
    assert not Region.parse("scale <= 0")(Case(scale=0.3))


def test_a_guess_that_can_not_separate_hides_no_failing_case():
    same = Case(causal=True)
    assert guess([same], [same, Case()])(same)
