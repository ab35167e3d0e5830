"""What runs on the machine: data, models, and a training loop that can be stopped, killed and resumed.

`python -m trainer train` is the worked example; `python -m trainer test --out RUN` looks at what came of it.
The package imports neither of its siblings: it is sent to a rented machine and run there.
"""
