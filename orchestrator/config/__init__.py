"""`orchestrate.yaml`: what it may say (`fields`), where each thing in it stands, and what it means here (`here`).

`loading` reads the file, and puts flags over it: flags win over the file, the file over the defaults. Scalars stay the
text that was written (`0.1`, `010`, `no`, `1:30`) until the field they stand in says what they are (`kinds`). So none
of YAML's guesses about types applies, and a flag is read by the same rules as a line.
"""
