"""The figures of `make bench`: overlace beside its peers, in one run, as ratios.

Part of the checkout, not of the program. Uses the lab's tools, and builds what it compares with itself.
"""
