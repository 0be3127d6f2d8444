"""The oracle: backends that rate concept pairs, their Serve deployment, the transition matrix."""


def cluster_has_serve() -> bool:
    """Whether Ray Serve runs on the connected cluster already."""
    import ray

    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True
