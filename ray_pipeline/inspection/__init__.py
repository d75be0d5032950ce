"""What an artifact holds, for people: counted a slice at a time, shown in the terminal and as one HTML page."""
