"""Raw multilingual search data to a relevance classifier, its scores and its report, on Ray."""
