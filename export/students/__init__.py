"""The small encoders that a bundle ships, each distilled from a teacher."""
