"""Scoring with saved adapters and no recipe: in a notebook (`RelevanceModel`), or raw files of any size on Ray."""
