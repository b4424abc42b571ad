from plinth_workloads.train.progress import PROGRESS_FILE, ProgressLog, read_progress
from plinth_workloads.train.reporting import ProgressReporter, loss_history


def test_events_come_back_from_any_offset(tmp_path):
    log = ProgressLog(tmp_path)
    log.write("a", value=1)
    log.write("b", value=float("nan"))
    ((first, behind), (second, _)) = read_progress(tmp_path)
    assert (first["event"], first["value"]) == ("a", 1)
    assert (second["event"], second["value"]) == ("b", None)
    assert [event["event"] for event, _ in read_progress(tmp_path, behind)] == ["b"]


def test_a_line_that_a_crash_cut_off_is_passed_over(tmp_path):
    log = ProgressLog(tmp_path)
    log.write("a")
    with (tmp_path / PROGRESS_FILE).open("a") as file:
        file.write('{"event": "cut')
    assert [event["event"] for event, _ in read_progress(tmp_path)] == ["a"]
    ProgressLog(tmp_path).write("b")
    assert [event["event"] for event, _ in read_progress(tmp_path)] == ["a", "b"]


def test_a_run_that_has_not_started_has_no_events(tmp_path):
    assert list(read_progress(tmp_path)) == []


def test_a_step_done_twice_counts_as_done_last(tmp_path):
    reporter = ProgressReporter(ProgressLog(tmp_path))
    metrics = {"train/lr": 0.1, "train/tokens_per_sec": 5.0, "train/tokens": 10.0}
    for step, loss in ((1, 3.0), (2, 2.5), (2, 2.4)):
        reporter.on_step(step, {**metrics, "train/loss": loss})
    reporter.on_evaluation(1, {"perplexity": 3.0})
    reporter.on_evaluation(2, {"loss": 2.6})
    assert loss_history(tmp_path) == ([(1, 3.0), (2, 2.4)], [(2, 2.6)])
