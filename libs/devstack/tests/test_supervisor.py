"""The delays of restarts."""

from devstack.dev.supervisor import delay_seconds


def test_each_end_in_a_row_doubles_the_delay_up_to_the_longest_however_often_a_process_ends() -> None:
    assert [delay_seconds(ends) for ends in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert delay_seconds(5_000) == 30
