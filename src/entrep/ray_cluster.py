"""Ray as the engine of sweeps and embedding: joined, or started on this machine.

Every machine must see the checkout (or have the same package installed), the data and the output
folder under the same paths, as on a shared folder, with the same Python environment.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

RETRIES = 3  # of a notebook whose worker was lost; what loses each of its workers is given up
_ANSWER_S = 5.0  # for a cluster's head to answer


def find_ray() -> ModuleType:
    """The installed Ray, told to keep to itself.

    Raises:
        ValueError: if there is none.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it would report to its makers
    # Whoever did not ask for a GPU sees none; later versions would let it take another's.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    try:
        import ray
    except ImportError as error:
        raise ValueError("--ray: Ray is not installed; pip install 'entrep[ray]'.") from error
    return ray


@contextmanager
def open_ray(address: str, cpus: int) -> Iterator[ModuleType]:
    """Join a cluster, or start Ray on this machine, while the block runs.

    What is at work there is ended with the block, however it ends.

    Args:
        address: "local" starts Ray here, "auto" joins the one that runs here, HOST:PORT the
            cluster with its head there; this machine must be part of it.
        cpus: that a Ray started here offers.

    Raises:
        ConnectionError: if there is no Ray at the address.
        ValueError: if it is no address, or Ray is not installed.
    """
    ray = find_ray()
    _check_address(address)
    home = str(Path(__file__).resolve().parents[1])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    options = {
        "address": address,
        "log_to_driver": False,
        "logging_level": "ERROR",
        "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}},
    }
    if address == "local":
        options |= {"num_cpus": cpus, "include_dashboard": False}
    polite = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError) as error:
            raise ConnectionError(_no_ray(address, error)) from error
        finally:
            signal.signal(signal.SIGTERM, polite)  # Ray takes it, and would skip our cleaning up
        yield ray
    finally:
        ray.shutdown()


def count_gpus(device: str) -> int:
    """GPUs that a device asks for; with "auto" it is as without Ray where there is none."""
    return int(device.startswith("cuda"))


def check_room(ray: ModuleType, needs: Mapping[str, float]) -> None:
    """Refuse what no machine of the cluster offers: Ray would wait for ever."""
    offered = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    keys = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    for one in offered:
        if all(one.get(keys[name], 0) >= value for name, value in needs.items()):
            return
    wanted = ", ".join(f"{name} {value}" for name, value in needs.items() if value)
    raise ValueError(f"--ray: no machine of the cluster offers {wanted}; ask for less.")


def _check_address(address: str) -> None:
    """Refuse at once what Ray would try for minutes."""
    if address in ("local", "auto"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ValueError(
            f"--ray {address}: expected local, auto, or HOST:PORT of a cluster's head, such as "
            "10.0.0.1:6379."
        )
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(_no_ray(address, error)) from error


def _no_ray(address: str, error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return (
        f"--ray {address}: no Ray answers there ({first}). Start one with 'ray start --head' "
        "(and 'ray start --address HOST:PORT' on the others), or take --ray local, which does "
        "it for this command. To a cluster that asks for a token, Ray sends it only where "
        "RAY_AUTH_MODE=token is set."
    )
