"""The story: up, run, down. Imports `infra`; knows the trainer only as a folder to send."""
