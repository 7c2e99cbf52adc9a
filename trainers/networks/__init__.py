"""Networks: backbones and their stems, the tensors that go in, and the precision they compute in."""
