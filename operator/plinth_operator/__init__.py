"""The operator: watches Plinth's resources and keeps the Ray objects, and an honest status, that they ask for."""
