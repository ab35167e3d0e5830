"""`resources:` in `orchestrate.yaml`: the machine to ask for."""

from __future__ import annotations

from pydantic import Field, model_validator

from infra import provider as clouds
from orchestrator.config import kinds as k
from orchestrator.config import quantities as q
from orchestrator.config.kinds import Fields


class Resources(Fields):
    """The machine to ask for. What is left out, or 0, may be whatever there is."""

    provider: k.Providers = Field(
        default=(q.LOCAL,),
        description="Whose machine: local is this computer, the others rent one; of several the best offer is taken, "
        "and the next where it can't be had. any: all that rent and whose package is installed.",
        examples=["local", "aliyun", ["aliyun", "tencent"], "any"],
    )
    region: k.Words | None = Field(
        default=None,
        description="The cloud's name of a region, or several; left out, any that it has.",
        examples=["cn-hangzhou", ["cn-hangzhou", "cn-shanghai"]],
    )
    zone: k.Line | None = Field(
        default=None, description="The cloud's name of a zone; left out, any.", examples=["cn-hangzhou-j"]
    )
    nodes: k.Nodes = Field(default=1, description="How many such machines, in one network.", examples=[1, 2])
    gpus: k.Gpus = Field(
        default=q.Gpus(),
        description="A count, a model, or both; none or 0 asks for none.",
        examples=["A10:1", "V100", 1],
    )
    cpus: k.Count = Field(default=0, description="Virtual CPUs, at least.", examples=[8, "8+"])
    memory: k.Size = Field(default=0, description="Memory in GiB, at least.", examples=[32, "32GB", "32+"])
    disk: k.Size = Field(default=0, description="Disk in GiB, at least.", examples=[100, "100GiB"])
    spot: k.Switch = Field(
        default=False, description="A cheaper machine, which the cloud may take back.", examples=[False, True]
    )
    max_price: k.Price | None = Field(
        default=None, description="The most to pay per hour, in the currency of the offers.", examples=[20]
    )
    budget: k.Price | None = Field(
        default=None,
        description="The most that the whole session may cost until its expiry, in the currency of the offers; what "
        "may cost more, or has no known price, isn't rented.",
        examples=[100],
    )
    expiry: k.Expiry = Field(
        default=8 * q.HOUR,
        description="The cloud itself ends the machine after this time, from 1m to 30d; a bare number is seconds.",
        examples=["8h", "90m", "1h30m", 3600],
    )
    idle: k.Idle = Field(
        default=q.HOUR,
        description="A rented machine that nobody has used for this long powers itself off; never, or 0: it doesn't.",
        examples=["1h", "never"],
    )
    port: k.Port | None = Field(default=None, description="SSH port; left out, the provider chooses.", examples=[2222])
    allow: k.Cidrs | None = Field(
        default=None,
        description="The addresses that may reach SSH on a rented machine; left out, this computer's own.",
        examples=["203.0.113.7", ["203.0.113.0/24"]],
    )
    data_disk: k.Size = Field(
        default=0, description="A second disk of so many GiB, which goes with the machine.", examples=[500, "1TB"]
    )
    image: k.Id | None = Field(
        default=None, description="The cloud's id of an image; left out, its Ubuntu 22.04.", examples=["m-bp1abc"]
    )
    network: k.Id | None = Field(
        default=None, description="The cloud's id of a network of yours; left out, one is made.", examples=["vpc-1abc"]
    )
    subnet: k.Id | None = Field(
        default=None, description="The cloud's id of a subnet of that network.", examples=["vsw-1abc"]
    )
    security_group: k.Id | None = Field(
        default=None, description="The cloud's id of a group of yours; left out, one is made.", examples=["sg-1abc"]
    )

    @model_validator(mode="after")
    def _of_one_cloud(self) -> Resources:
        """What is named by a cloud's id is in that cloud, and a subnet is in its network."""
        if bool(self.network) != bool(self.subnet):
            given = "network" if self.network else "subnet"
            raise q.BadItem(given, "a network of your own needs a subnet of your own, and the other way round")
        for name in ("image", "network", "security_group", "zone"):
            if getattr(self, name) and (len(self.provider) > 1 or self.provider[0] in (q.LOCAL, q.ANY)):
                raise q.BadItem(name, "is one cloud's own; name that cloud as the provider, and no other")
        return self

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers as they are written: ("any",) is every cloud. `provider_names` says which those are."""
        return self.provider

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions allowed; empty: any."""
        return self.region or ()

    def request(self) -> clouds.Request:
        """The same in the words of `infra`."""
        return clouds.Request(
            gpus=self.gpus.count,
            gpu=self.gpus.model,
            cpus=self.cpus,
            memory_gib=self.memory,
            disk_gib=self.disk,
            spot=self.spot,
            regions=self.regions,
            zone=self.zone or "",
            port=self.port or 0,
            max_price_per_hour=self.max_price,
        )
