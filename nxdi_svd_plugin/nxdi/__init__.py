"""The integration with NeuronX Distributed Inference."""
