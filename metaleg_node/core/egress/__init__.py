"""What leaves with the LoadBalancer address."""
