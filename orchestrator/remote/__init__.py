"""What runs on the machine: standard library only, Python 3.8 and up, sent as the files they are.

`start.py` starts `agent.py`, which answers one client over one SSH channel. `supervisor.py` owns one job from queue to
exit record and needs no client at all. Beside them lie `trees.py` (what was pushed), `outputs.py` (what a job has
written), `joblog.py` (what it has printed, whatever was lost of that), `bucket.py` (its way through an object store)
and `again.py` (jobs that begin again, by the machine itself too). Nothing here is imported by the rest of the package;
it is read as text.
"""
