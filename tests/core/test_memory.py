"""The memory a process may take."""

import resource

from vnet.core.memory import memory_limit_bytes


def test_the_memory_limit_is_that_of_the_process():
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    machine = memory_limit_bytes()
    assert machine > 2**28
    low = 2**44 if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_AS, (low, hard))
    try:
        assert memory_limit_bytes() == min(machine, low)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
