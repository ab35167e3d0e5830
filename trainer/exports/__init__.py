"""A trained run as files that other programs run, each compared with the model before it is written."""
