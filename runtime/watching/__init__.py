"""Watching: many cameras and questions at once, each answer by its deadline."""
