"""Measurements on data and models that the product does not need."""
