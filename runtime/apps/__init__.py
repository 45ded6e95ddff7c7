"""Applications built on the runtime's public face."""
