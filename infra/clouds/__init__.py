"""One file a cloud. `infra.provider.load(name)` imports `infra.clouds.NAME` and takes its `CLOUD`."""
