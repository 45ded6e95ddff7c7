"""What a user would pick instead of EdgeRAVLM, and `side_by_side.py`, which measures it."""
