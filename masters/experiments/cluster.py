"""The same generation over a Ray cluster: shares of the questions as rows of a Ray dataset.

Every node sees the same data folder (a network file system) and can import ``masters``. A share is a job that
can be done again at no cost: what is in the store is not generated a second time. So a worker that dies,
whatever kills it, loses the batch under way, and Ray gives its share to another.
"""

import os
import socket
from collections.abc import Sequence
from typing import Any

import torch

from masters.experiments.lab import Lab
from masters.experiments.response_plan import WantedResponses, make, shard
from masters.runtime.files import data_dir
from masters.settings import Profile


def make_on_ray(
    lab: Lab, wanted: Sequence[WantedResponses], pool: Sequence[int], shares: int, address: str
) -> None:
    """Generate and judge what is missing of several authors, a share of the questions a task.

    Args:
        lab: of the profile.
        wanted: whose responses, and how many.
        pool: indices of the questions.
        shares: into how many tasks the questions are cut; several times the number of workers keep all busy.
        address: of the cluster; ``local`` starts one on this machine, ``auto`` takes the one that runs here.

    Raises:
        ValueError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise ValueError("--ray needs the ray package: pip install 'masters[ray]'") from None
    _reachable(address)
    for what in wanted:
        lab.folder(what.model)
    variables = {"MASTERS_DATA": str(data_dir().resolve()), "HF_HUB_OFFLINE": "1"}
    variables |= {name: os.environ[name] for name in ("OPENAI_API_KEY",) if name in os.environ}
    options: dict[str, Any] = {"runtime_env": {"env_vars": variables}, "logging_level": "ERROR"}
    if address == "local":
        options |= {"num_cpus": lab.profile.processes, "include_dashboard": False}
    # Its next default, which leaves the GPUs of tasks that ask for none as they are.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(address=address, log_to_driver=False, **options)
    except ConnectionError as error:
        raise ValueError(f"no Ray cluster at {address!r} ({' '.join(str(error).split())[:200]})") from None
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        given = {"profile": lab.profile, "wanted": list(wanted), "pool": list(pool), "shares": shares}
        gpus = 1 if torch.cuda.is_available() and lab.profile.generation.engine != "openai" else 0
        rows = ray.data.from_items([{"share": index} for index in range(shares)], override_num_blocks=shares)
        made: Any = _share  # Ray's types know of the row alone
        again = {"max_retries": -1}
        done = rows.map(made, fn_kwargs=given, num_cpus=1, num_gpus=gpus, ray_remote_args_fn=lambda: again)
        done.materialize()
    finally:
        ray.shutdown()


def _reachable(address: str) -> None:
    """Ray itself waits for minutes for a cluster that is not there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:  # local, auto
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no Ray cluster at {address!r} ({error}); see that it runs and is reachable"
        ) from None


def _share(
    row: dict[str, Any],
    profile: Profile,
    wanted: Sequence[WantedResponses],
    pool: Sequence[int],
    shares: int,
) -> dict[str, Any]:
    torch.set_num_threads(1)
    lab, questions = Lab(profile), shard(pool, int(row["share"]), shares)
    for what in wanted:
        make(lab, what, questions)
    return {**row, "questions": len(questions)}
