"""Spreading: independent trainings carried out by the workers of a Ray cluster.

Whoever spreads work writes each piece as a function of an opened hub that may be stopped at any moment and called
again: a worker that dies is replaced, and the same call goes on from the checkpoints that lie in the hub.
"""
