"""Benchmarks of throughput, latency and CPU time: README.md explains what they measure and how to read them."""
