"""The commands, of a dozen lines each, by what they are about; the only place that prints and exits.

`story` is the main path. What several of them take is in `flags` and `reading`; how they end is in `telling`. Heavy
modules are imported inside the commands: `orchestrate --help` answers in a blink.
"""
