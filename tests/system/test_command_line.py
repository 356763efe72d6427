"""Wrong flags are one line; errors become exit codes."""

import pytest

from system.command_line import Parser, number, run_main
from system.errors import ConfigError, DataError, RunError
from system.stop_request import Stopped


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--outp", "x"], "did you mean --output?"),
        (["--xyzw=1"], "unrecognized arguments: --xyzw=1. --help lists all flags"),
        (["--steps", "0"], "argument --steps: must be at least 1, not 0"),
        (["--steps", "1.5"], "argument --steps: invalid int value: '1.5'"),
        (["--rate", "0"], "argument --rate: must be above 0, not 0"),
        (["--rate", "inf"], "argument --rate: must be above 0, not inf"),
        (["--rate", "nan"], "argument --rate: must be above 0, not nan"),
    ],
)
def test_a_wrong_flag_is_one_line(argv, message):
    parser = Parser()
    parser.add_argument("--output")
    parser.add_argument("--steps", type=number(int, 1))
    parser.add_argument("--rate", type=number(float, 0, above=True))
    with pytest.raises(ConfigError) as caught:
        parser.parse_args(argv)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("end", "code", "line"),
    [
        (None, 0, ""),
        (3, 3, ""),
        (DataError("a.mp4", "no video"), 2, "x.py: error: a.mp4: no video\n"),
        (RunError("no room"), 1, "x.py: error: no room\n"),
        (Stopped(15, "stopped before the first step"), 143, "x.py: stopped before the first step\n"),
        (KeyboardInterrupt(), 130, "\nx.py: stopped; go on\n"),
    ],
)
def test_the_exit_code_tells_how_it_ended(end, code, line, capsys):
    def work():
        if isinstance(end, BaseException):
            raise end
        return end

    assert run_main("x.py", work, when_stopped="stopped; go on") == code
    assert capsys.readouterr().err == line


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_main("x.py", lambda: 1 // 0)
