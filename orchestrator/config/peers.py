"""What a person most likely meant by a field that isn't ours: by closeness, and by the words of our peers."""

from __future__ import annotations

from orchestrator.config import quantities as q
from orchestrator.config.document import Loc
from orchestrator.config.fields import Checkpoints, Config, Tune
from orchestrator.config.kinds import Fields
from orchestrator.config.resources import Resources

# The words of SkyPilot and dstack, whose files many users have at hand.
THEIR_WORDS = {
    "accelerator": "gpus",
    "accelerators": "gpus",
    "gpu": "gpus",
    "use_spot": "spot",
    "spot_policy": "spot",
    "disk_size": "disk",
    "cloud": "provider",
    "infra": "provider",
    "backend": "provider",
    "backends": "provider",
    "file_mounts": "inputs",
    "files": "inputs",
    "env": "envs",
    "command": "run",
    "working_dir": "workdir",
    "max_duration": "expiry",
    "autostop": "idle",
    "autodown": "idle",
    "idle_duration": "idle",
    "idle_minutes": "idle",
    "idle_minutes_to_autostop": "idle",
    "num_nodes": "nodes",
    "regions": "region",
    "zones": "zone",
    "availability_zone": "zone",
    "availability_zones": "zone",
    "image_id": "image",
    "max_cost": "budget",
    "vpc": "network",
    "vpc_name": "network",
    "ttl": "expiry",
}
NOT_OURS = {
    "commands": "did you mean run? Its lines of shell stand under `run: |`",
    "instance_type": "a machine can't be named by its type: ask for gpus, cpus and memory, and the cheapest that fits "
    "is taken",
    "instance_types": "a machine can't be named by its type: ask for gpus, cpus and memory, and the cheapest that fits "
    "is taken",
    "type": "a file always describes one run, so leave it out",
    "python": "Python's version can't be chosen here; install the one you need in setup",
}


def advice(loc: Loc) -> str:
    """What the user most likely meant by an unknown field."""
    inside = loc[0] == "resources" and len(loc) > 1
    word = str(loc[-1]).lower().replace("-", "_")
    sections: dict[str | int, type[Fields]] = {"checkpoints": Checkpoints, "tune": Tune}
    if loc[0] in sections and (own := q.closest(word, sections[loc[0]].model_fields)):
        return f"; did you mean {own}?"
    near, far = (Resources, Config) if inside else (Config, Resources)
    if word in NOT_OURS:
        return f"; {NOT_OURS[word]}"
    target = word if word in near.model_fields or word in far.model_fields else THEIR_WORDS.get(word, "")
    target = target or q.closest(word, near.model_fields) or q.closest(word, far.model_fields)
    if not target:
        return ""
    if target in near.model_fields:
        return f"; did you mean {target}?"
    return f"; did you mean {target}, outside resources?" if inside else f"; did you mean resources.{target}?"
