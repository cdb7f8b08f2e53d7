"""Starting the simulator: the port that it, and each server of the tests, is given."""

from pathlib import Path

from rensei.simulator.server import free_port


class TestFreePort:
    def test_is_no_port_that_the_kernel_gives_to_a_connection_before_the_server_has_it(self):
        lowest, highest = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())

        ports = {free_port() for _ in range(20)}

        assert not any(lowest <= port <= highest for port in ports)
        assert len(ports) > 10
