"""What is: from manifests that the watches hold to facts, and from facts to one phase and one reason. Pure."""
