"""The page to try a model on: what it looks like, and what it lets in.

It knows no model. `commands/app.py` gives it a function from a picture and settings to a piece of HTML. Gradio is
imported by `page` alone, after `serving.private_folder` has set where it may write.
"""
