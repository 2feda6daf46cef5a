"""Data of Loupe: reading images and masks, data sets, augmentation, loaders, synthetic forgeries.

Importing this package registers nothing: call `loupe.data.catalog.register_forgery_datasets`.
"""
