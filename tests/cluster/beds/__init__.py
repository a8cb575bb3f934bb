"""Real Kubernetes for the tests: a control plane, the same with KWOK's nodes, and machines with real kubelets."""
