"""The page: what it lets in, what it shows in a real browser, how it bears load."""
