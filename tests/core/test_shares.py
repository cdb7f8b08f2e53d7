"""What each organization may hold of what a process has."""

from rensei.core.shares import ByteShares


def filled(shares: ByteShares, org: str) -> int:
    """Take as much as there is for an organization, and return it."""
    while shares.take(org, 1, most=256, of_all=1024):
        pass
    return shares.held[org]


class TestByteShares:
    def test_leave_a_part_for_each_further_organization(self) -> None:
        shares = ByteShares()

        held = [filled(shares, f"org {number}") for number in range(10)]

        assert held[0] == 256
        assert held[-1] >= 10
        assert shares.take("one more", 5, most=256, of_all=1024)

    def test_are_free_again(self) -> None:
        shares = ByteShares()
        shares.take("acme", 200, most=256, of_all=1024)
        shares.leave("acme", 200)

        assert (shares.total, dict(shares.held)) == (0, {})
