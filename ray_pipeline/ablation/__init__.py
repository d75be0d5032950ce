"""Many recipes against one baseline: what a matrix file asks for, its runs over seeds, and one table of them."""
