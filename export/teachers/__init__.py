"""The full-precision encoders that the students learn from."""
