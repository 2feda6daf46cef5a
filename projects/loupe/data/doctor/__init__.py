"""The doctor: finds what is wrong with data sets before a model learns it.

    listing     lists a set even where its files do not pair, and says what does not
    facts       what is measured of one image and its mask; pure, in a worker process
    examination all images in parallel, with a cache that lets an interrupted run go on
    duplicates  equal and nearly equal images
    faults      the checks of one set;  leakage: those between sets
    statistics  balance, sizes, formats, and the alphas of the losses
    report      JSON and Markdown
"""
