"""Evaluation suites: what a bundle finds, reads and leaves unanswered, on data that nothing learnt from."""
