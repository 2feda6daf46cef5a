"""One module per way to say which images a data set has; each gives a `Listing`."""
