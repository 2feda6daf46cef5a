"""What can be said of a prediction: measured facts, and text that a language model writes.

`facts` needs image and prediction alone. The others hold the explainer (IFDL-VLM's stage 2), which
needs `pip install 'loupe[explain]'`; no module imports transformers before it is used.
"""
