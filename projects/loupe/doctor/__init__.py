"""The doctor: finds what is wrong with data sets before a model learns it.

- `listing` lists a set even where its files do not pair, and says what does not;
- `facts` is what is measured of one image and its mask;
- `examination` measures all images in parallel, with a cache that lets an interrupted run go on;
- `duplicates` finds equal images, and those that look alike;
- `faults` holds the checks of one set and of several, `findings` what they are called;
- `statistics` gives balance, sizes, formats and the alphas of the losses;
- `report` writes it down.
"""
