"""cifarlab: ablations on CIFAR-10 and CIFAR-100 that one can believe."""
