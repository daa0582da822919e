"""Raw Kubernetes objects become values."""
