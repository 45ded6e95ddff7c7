"""How fast a bundle answers on this machine, how well, and whether that changed."""
