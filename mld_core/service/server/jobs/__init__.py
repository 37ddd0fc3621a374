"""Evaluations on the server: the `queue`, the `worker` that takes from it, the limited child process."""
