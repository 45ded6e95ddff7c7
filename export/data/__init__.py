"""Datasets: packages fetched by name, scenes composed from them, the demo clip."""
