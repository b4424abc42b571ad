from plinth_workloads.train.pulse import Pulse, bytes_below


def test_marks_count_and_say_what_is_done():
    pulse = Pulse()
    before = pulse.moved_at
    pulse.mark("reading its batch", 7)
    pulse.mark("computing the forward pass")
    assert (pulse.marks, pulse.step, pulse.doing) == (2, 7, "computing the forward pass")
    assert pulse.moved_at >= before
    assert not pulse.has_started
    pulse.finish_step()
    assert pulse.has_started


def test_each_batch_of_a_long_evaluation_moves():
    pulse = Pulse()
    assert list(pulse.each("evaluating", "abc")) == ["a", "b", "c"]
    assert (pulse.marks, pulse.doing) == (3, "evaluating")


def test_a_long_checkpoint_moves_as_long_as_it_grows(tmp_path):
    pulse = Pulse()
    now = pulse.moved_at
    with pulse.during("saving a checkpoint", lambda: bytes_below(tmp_path)):
        (tmp_path / "part").write_bytes(b"1")
        pulse.look(now + 10)
        assert pulse.moved_at == now + 10
        pulse.look(now + 20)
        assert pulse.moved_at == now + 10
        (tmp_path / "part").write_bytes(b"12")
        pulse.look(now + 30)
        assert pulse.moved_at == now + 30
    marked = pulse.moved_at
    (tmp_path / "other").write_bytes(b"1")
    pulse.look(now + 40)
    assert pulse.moved_at == marked


def test_a_folder_that_is_not_there_has_no_bytes(tmp_path):
    assert bytes_below(tmp_path / "none") == (0, 0)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"123")
    assert bytes_below(tmp_path) == (1, 3)
