"""What a person most likely meant by a field that isn't ours: by closeness, and by the words of our peers."""

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
