"""Several processes of one run on this machine, on processors, where `accelerate launch` starts only one."""

import socket


def team_environments(count: int = 2) -> list[dict[str, str]]:
    """What the environment of each process of a team has to say, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",  # else Accelerate chooses, and sums have another order than in one process
    }
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
