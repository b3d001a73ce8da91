"""The export of a model, compiled by TensorRT: a plan, which is for one kind of machine and says so."""
