"""Wrong input and hostile files: what is refused, with which words, and what is read as it is meant."""
