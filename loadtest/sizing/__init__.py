"""Sizing: what a cluster of given workers would do with a load, by discrete-event simulation.

calibrate.py measures a profile (profile.py) on a live cluster; simulation.py runs requests through
prefill.py and decode.py, colocated.py through both.py; cluster.py names what is simulated; recommend.py looks
for the best split of workers, and says whether they should be split.
"""
