"""The first hour on a device: each kernel alone, from a matmul upwards, in a process of its own (`doctor --device`)."""
