"""``megu doctor``: what is wrong with a machine or a Ray cluster, and how to mend it.

Each group of checks is one file with two functions. ``look(node)`` runs on every node and returns plain facts;
``judge(seen, asked)`` runs on the driver, gets the facts of all nodes by node name, and returns findings. A new group
is such a file and one line in :mod:`megu_dist.doctor.probe` and :mod:`megu_dist.doctor.examine` each.

The package travels to the nodes by value, since a node may have another version of it, or none: ``look`` may use the
standard library, and imports anything else within.
"""
