"""Worlds that policies act in, and the scripted experts that demonstrate in them.

Importing the package costs nothing: mujoco is imported by `tabletop`, `kinematics` and `render` alone, when they are used.
"""
