"""The workstation half: from teacher encoders to a verified bundle."""
