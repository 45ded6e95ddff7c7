"""Memories of many entries, ours beside its peers.

The map: ``data`` (what is stored, asked and true) · ``systems`` (ours and the peers, alike) · ``worker`` (one of them
in a process of its own) · ``processes`` (that process from outside) · ``front`` (who dominates whom) · ``scale`` (ours
alone, for ``main_job.py``). ``data``, ``systems`` and ``worker`` run in the peers' environment too: at import they
need numpy alone.
"""
