"""Where things lie in our pods: written into run documents and mounted by pod templates, so that the two agree."""

CACHE_DIR = "/mnt/plinth/cache"
"""Caches of libraries and the home folder; ends with the pod."""

SERVICE_WORK_DIR = "/mnt/plinth/work"
"""Models that a replica downloads; ends with the pod. A job's work folder is shared, and so on a claim."""

MODEL_CACHE_DIR = "/mnt/plinth/models"
"""Models that replicas of all services of a namespace share, where the platform has a claim for them."""

API_KEYS_FOLDER = "/etc/plinth-api-keys"
"""The Secret with a service's API keys, a key a file."""

RUN_FOLDER = "/etc/plinth"
RUN_KEY = "run.json"
RUN_PATH = f"{RUN_FOLDER}/{RUN_KEY}"
