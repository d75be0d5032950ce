"""What must hold of a finished run, checked from its files: within each artifact, and from one to the next."""
