"""The questions that the paper leaves open, as matrices of recipes on real parallel text and a small real model."""
