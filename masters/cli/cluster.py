"""Generation on a Ray cluster: shards of the questions as rows of a Ray dataset.

Every node needs the same data folder (a network file system) and an importable ``masters``. A shard can be
rerun at no cost, because stored responses are not generated again: when a worker dies, only the batch under
way is lost, and Ray reruns its shard elsewhere.
"""

import os
import socket
from typing import Any

import torch

from masters.experiments.lab import Lab
from masters.experiments.response_plan import Asked, shard
from masters.runtime.errors import one_line
from masters.runtime.files import cache_dir, data_dir
from masters.settings import Profile


def make_on_ray(lab: Lab, asked: Asked, shares: int, address: str) -> None:
    """Generate and judge the missing responses of several models, one shard of the questions per task.

    Args:
        shares: number of tasks; several times the number of workers keeps all of them busy.
        address: the cluster's; ``local`` starts one on this machine, ``auto`` uses one running here.

    Raises:
        ValueError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise ValueError("--ray needs the ray package: pip install 'masters[ray]'") from None
    _reachable(address)
    for what in asked:
        lab.folder(what.model)
    variables = {"MASTERS_DATA": str(data_dir().resolve()), "MASTERS_CACHE": str(cache_dir().resolve())}
    variables["HF_HUB_OFFLINE"] = "1"
    variables |= {name: os.environ[name] for name in ("OPENAI_API_KEY",) if name in os.environ}
    options: dict[str, Any] = {"runtime_env": {"env_vars": variables}, "logging_level": "ERROR"}
    if address == "local":
        options |= {"num_cpus": lab.profile.processes, "include_dashboard": False}
    # Ray's coming default: do not hide the GPUs from tasks that request none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(address=address, log_to_driver=False, **options)
    except ConnectionError as error:
        raise ValueError(f"no Ray cluster at {address!r} ({one_line(error)})") from None
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        given = {"profile": lab.profile, "asked": dict(asked), "shares": shares}
        engine = lab.profile.generation
        each = engine.vllm.get("tensor_parallel_size", 1) if engine.engine == "vllm" else 1
        gpus = each if torch.cuda.is_available() and engine.engine != "openai" else 0
        rows = ray.data.from_items([{"share": index} for index in range(shares)], override_num_blocks=shares)
        make_share: Any = _share  # Ray's types know the row alone
        retry = {"max_retries": -1}
        rows.map(
            make_share, fn_kwargs=given, num_cpus=1, num_gpus=gpus, ray_remote_args_fn=lambda: retry
        ).materialize()
    finally:
        ray.shutdown()


def _reachable(address: str) -> None:
    """Raise ValueError at once if nothing listens at the address; Ray itself waits for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:  # local, auto
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError, ValueError) as error:
        raise ValueError(
            f"no Ray cluster at {address!r} ({error}); check that it runs and is reachable"
        ) from None


def _share(row: dict[str, Any], profile: Profile, asked: Asked, shares: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    lab = Lab(profile)
    for what, questions in asked.items():
        lab.make_responses(what, shard(questions, int(row["share"]), shares))
    return row
