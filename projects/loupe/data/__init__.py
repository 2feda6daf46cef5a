"""Data: where images and masks are, how their pixels are read, how training draws them.

Importing this package registers nothing: `sources.catalog.register_forgery_datasets` does.
"""
