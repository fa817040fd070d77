"""The table of attempts in sandbox/README.md tells what the tests of today run."""

from tests.security.breach.table import BEGIN, END, README, block


def test_the_table_of_attempts_is_of_today() -> None:
    """What is told is what is tried; `python -m tests.security.breach.table` writes it anew."""
    readme = README.read_text()

    found = BEGIN + readme.partition(BEGIN)[2].partition(END)[0] + END

    assert found == block()
