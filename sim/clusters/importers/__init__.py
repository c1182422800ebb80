"""Other people's descriptions of clusters and networks."""
