"""Random sequences of changes end in the state of the last spec: the short form of tests/long."""

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lives import Runs
from namespaces import Namespace
from operators import operator_behind_proxies
from plinth_operator.settings import Settings
from sequences import assert_last_word_holds, play_all, sequences

pytestmark = pytest.mark.integration


def test_the_last_word_holds(control_plane, namespace, tracking, tmp_path):
    with operator_behind_proxies(tmp_path, control_plane, tracking.uri, namespace=namespace) as disturbed:
        cluster = Namespace(control_plane, namespace, disturbed.operator.log)
        cluster.claim("plinth")

        # One batch, always the same; there is nothing to shrink in what may hang on the moment.
        @settings(max_examples=1, derandomize=True, deadline=None, phases=[Phase.generate], database=None)
        @given(st.lists(sequences(), min_size=8, max_size=8))
        def play(batch):
            for player in play_all(batch, cluster, "short"):
                assert_last_word_holds(
                    player, Runs(tracking.uri), Settings(tracking_uri=disturbed.mlflow.url, namespace=namespace)
                )

        play()
        assert "Traceback" not in disturbed.operator.log.read_text()
