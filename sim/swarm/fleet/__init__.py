"""A swarm's fleet: which nodes of the cluster are rented, by policies of load, forecast and price."""
