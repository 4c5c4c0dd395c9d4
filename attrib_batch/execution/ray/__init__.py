"""Workers as actors of a Ray cluster, and jobs submitted to one."""
