"""Launch configs: a plan in the words of the framework that runs it, and back.

One module a target writes, :mod:`autoshard.launch.reading` reads. Nothing is imported here: each
method of :class:`autoshard.SolvedPlan` imports the target that it is named after.
"""
