"""Who owns what, and how to reach it. Pure: imports neither ray nor sockets."""
