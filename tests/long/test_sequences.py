"""200 random sequences of changes end in the state of the last spec: `make test-long`."""

import itertools

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lives import Runs
from namespaces import Namespace
from operators import operator_behind_proxies
from plinth_operator.settings import Settings
from sequences import assert_last_word_holds, play_all, sequences

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]

NUM_BATCHES, BATCH_SIZE = 10, 20


def test_the_last_word_holds(control_plane, namespace, tracking, tmp_path):
    with operator_behind_proxies(tmp_path, control_plane, tracking.uri, namespace=namespace) as disturbed:
        cluster = Namespace(control_plane, namespace, disturbed.operator.log)
        cluster.claim("plinth")
        numbers = itertools.count()

        @settings(
            max_examples=NUM_BATCHES,
            deadline=None,
            phases=[Phase.generate],
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(sequences(), min_size=BATCH_SIZE, max_size=BATCH_SIZE))
        def play(batch):
            own = Settings(tracking_uri=disturbed.mlflow.url, namespace=namespace)
            players = play_all(batch, cluster, f"batch-{next(numbers)}")
            for player in players:
                assert_last_word_holds(player, Runs(tracking.uri), own)
            for player in players:
                if player.exists:
                    cluster.delete(player.document())

        play()
        assert next(numbers) >= NUM_BATCHES
        assert "Traceback" not in disturbed.operator.log.read_text()
