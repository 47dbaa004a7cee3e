"""The physics: what a cost model reads (specs), and the cost models themselves.

Imports neither ``autoshard.search`` nor the product; a cost-model author needs only this package.
"""

if __name__ != "autoshard.costmodels":
    raise ImportError("costmodels/ is the source of autoshard.costmodels: import it by that name")
