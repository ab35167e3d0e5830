"""What every cloud has to be."""

from __future__ import annotations

import pytest

from infra import provider
from infra.errors import UnknownProvider


@pytest.mark.parametrize("name", provider.names())
def test_a_cloud_says_what_it_is_and_can(name: str) -> None:
    cloud = provider.load(name)
    assert isinstance(cloud, provider.Cloud)
    assert cloud.name == name
    assert cloud.title
    assert cloud.regions
    assert all(isinstance(region, str) and region for region in cloud.regions)
    for act in (cloud.offers, cloud.create, cloud.destroy, cloud.survivors):
        assert callable(act)


def test_local_is_one_of_them() -> None:
    assert "local" in provider.names()


def test_a_misspelt_cloud_gets_a_suggestion() -> None:
    with pytest.raises(UnknownProvider, match="no provider 'locl'") as caught:
        provider.load("locl")
    assert caught.value.hint == "did you mean 'local'?"


def test_an_unknown_cloud_gets_the_list() -> None:
    with pytest.raises(UnknownProvider) as caught:
        provider.load("zzzzzz")
    assert caught.value.hint.startswith("choose one of: ")
    assert "local" in caught.value.hint
