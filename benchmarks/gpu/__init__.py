"""One command for a GPU: everything about speed and exactness that a CPU cannot show, at full size, on one page.

Weights are random, so nothing is downloaded. Each part runs in a process of its own with a time limit: what it has
measured before it runs out of memory, crashes or is stopped stays on the page, and the parts behind it go on.
"""
