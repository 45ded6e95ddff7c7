"""Memories of many entries, ours beside its peers.

The map: ``data`` (what is stored, asked and true) · ``ours`` and ``systems`` (ours and the peers, alike) · ``worker``
(one of them in a process of its own) · ``processes`` (that process from outside) · ``front`` (who dominates whom) ·
``plots`` (that as a picture) · ``scale`` (ours alone, for ``growth.py`` and ``limits.py``). ``data``,
``systems`` and ``worker`` run in the peers' environment too: at import they need numpy alone.
"""
