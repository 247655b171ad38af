"""A local page on which a model can be looked at: what may be asked of it, one request at a time, and the page itself.

What comes from a browser is untrusted: numbers are checked against `Limits`, files are read with suspicion, and no path that a browser
names is opened. Gradio is imported in `page` alone.
"""
