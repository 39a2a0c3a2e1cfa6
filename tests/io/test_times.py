"""Times in words."""

from mmalign.io.times import lasting


def test_times_as_people_say_them():
    assert [lasting(s) for s in (0, 4.4, 99.4, 100, 5940, 6000, 36060)] == [
        "0 s", "4 s", "99 s", "2 min", "99 min", "1 h 40 min", "10 h 1 min",
    ]  # fmt: skip


def test_a_number_out_of_a_damaged_file_is_no_time():
    assert {lasting(number) for number in (float("inf"), float("nan"), -1.0, 1e300)} == {"?"}


def test_days_and_years():
    assert [lasting(86400.0 * days) for days in (9.9, 10, 400, 1000, 3650)] == [
        "237 h 36 min", "10 days", "400 days", "3 years", "10 years",
    ]  # fmt: skip
