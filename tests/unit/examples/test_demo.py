"""What the demo says last where it is to leave its service up."""

import subprocess
import sys

from unit.examples.examples import load_example

demo = load_example("demo")


def test_the_chat_page_is_named_as_long_as_the_service_is_up(capsys):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.close()
        demo._stay_up(process, "http://127.0.0.1:8123")
        assert process.returncode is not None, "it waits for the service to end"
    assert capsys.readouterr().out == "Chat with it in a browser, until Ctrl-C: http://127.0.0.1:8123/\n"
