"""What should be: from a resource and what is observed to manifests, attempts and status. Pure."""
