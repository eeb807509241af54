"""What is inside, as rows of tables."""

from charrnn.inspection.findings import Alike, ClassBits, Excess, Memory, Reach
from charrnn.terminal import inside


def test_memory_rows_are_about_powers_of_two() -> None:
    """Up to the last age, and without a negative zero."""
    ages = tuple(float(age) for age in range(1, 21))
    alone = Excess((1.0,) * 19 + (-1e-5,), (0.1,) * 20, num_used=None, num_most=3)
    found = Memory(ages, 20, 500, alone, mixture=None)
    rows = inside.memory_rows(found)
    assert [row[0] for row in rows] == ["1", "2", "4", "8", "16"]
    assert rows[0] == ("1", "1.000", "0.100")
    assert inside.memory_header(found, "byte") == ("bytes known", "bits/byte more", "±")
    both = Memory((1.0,), 1, 500, Excess((-1e-5,), (0.1,), 1, 1), Excess((2.0,), (0.2,), 1, 1))
    assert inside.memory_rows(both) == [("1", "0.000", "0.100", "2.000", "0.200")]
    assert len(inside.memory_header(both, "character")) == 5


def test_reach_rows_end_with_the_farthest_step() -> None:
    """0, 1, 2, 4, … and the last."""
    curve = tuple(0.5**step for step in range(7))
    rows = inside.reach_rows(Reach(curve, curve, curve, num_targets=64, gain=0.5))
    assert [row[0] for row in rows] == ["0", "1", "2", "4", "6"]
    assert rows[1] == ("1", "0.5", "0.5", "0.5")
    vanished = inside.reach_rows(Reach((12.34, 0.0), (1e-12, 0.0), (0.056, 1e-36), 64, 0.0))
    assert vanished == [("0", "12", "1e-12", "0.056"), ("1", "0", "0", "1e-36")]
    assert [row[0] for row in inside.reach_rows(Reach((1.0, 0.5), (1.0, 0.5), (1.0, 0.5), 64, 0.5))] == ["0", "1"]


def test_class_rows_have_shares_of_the_bits() -> None:
    """And what network and n-grams need alone, if there are n-grams."""
    found = [ClassBits("digits", 10, 30.0, 35.0, 40.0), ClassBits("capitals", 5, 10.0, 5.0, 20.0)]
    assert inside.class_rows(found)[0] == ("digits", "10", "30", "75.0%", "3.000", "3.500", "4.000")
    assert inside.class_header(found, "character")[-1] == "n-grams"
    plain = [ClassBits("digits", 10, 0.0)]
    assert inside.class_rows(plain) == [("digits", "10", "0", "0.0%", "0.000")]
    assert inside.class_header(plain, "byte") == ("class", "bytes", "bits", "share", "bits/byte")


def test_characters_that_nobody_sees_are_named() -> None:
    """A row stays one line with three cells."""
    row = inside.alike_row(Alike("\n", ((" ", 0.5), ("\x1b", 0.25), ("é", -0.1))))
    assert row == ("newline", "space escape é", "0.50 0.25 -0.10")
