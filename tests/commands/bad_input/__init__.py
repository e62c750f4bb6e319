"""Input that is wrong, as cases that return the line that the user sees."""
