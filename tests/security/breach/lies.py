"""What a breached cell tells the engine, and what becomes of the run that it had: the table.

A lie is a program in Python, run natively in the cell. `batch(messages)` gets each batch of the
engine and speaks for itself through `cell` (`attacker.Wire`). `run` is how its run must end.
"""

from dataclasses import dataclass
from typing import Final

# The head of each program: what an honest guest would find out.
HEAD: Final = """
def starts(messages):
    return [one[1] for one in messages if one[0] == 0]
def answers(messages):
    return {one[2]: (one[4], one[5]) for one in messages if one[0] == 1}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lie:
    """One row. `ends`: every status that the run may end with, the most likely first."""

    name: str
    group: str
    code: str
    ends: tuple[str, ...]
    refused: bool = False  # its host call is answered by an error


CRASHED: Final = ("crashed",)
TIMED_OUT: Final = ("timed_out",)
SUCCEEDED: Final = ("succeeded",)


def _once(group: str, ends: tuple[str, ...], **codes: str) -> tuple[Lie, ...]:
    """Return lies that are told when the first run starts; `run` is its number."""
    return tuple(
        Lie(
            name=name.replace("_", " "),
            group=group,
            ends=ends,
            code=(
                "def batch(messages):\n    for run in starts(messages):\n        "
                + code.replace("\n", "\n        ")
            ),
        )
        for name, code in codes.items()
    )


FRAMES: Final = (
    _once(
        "frames",
        CRASHED + TIMED_OUT,  # whichever comes first, where there is much to send
        a_frame_of_96_MiB="cell.raw(struct.pack('>IcI', 96 * MIB, b'o', cell.isolate))\n"
        "for _ in range(96):\n    cell.raw(bytes(MIB))",
        seven_million_messages=(
            "cell.output_raw(b'[' + b'[2,1,[],0],\\n' * 7000000 + b'[2,1,[],0]]')"
        ),
    )
    + _once(
        "frames",
        CRASHED + SUCCEEDED,  # what comes after a result is too late, or too much
        outputs_after_the_run_has_ended=(
            "for _ in range(1000):\n    cell.output([DONE, run, 'ok', 1])"
        ),
        two_results="cell.output([DONE, run, 'ok', 1], [DONE, run, 'ok', 2])",
        a_result_and_then_a_call="cell.output([DONE, run, 'ok', 1], [CALL, run, 1, 'kv.get', {}])",
    )
    + _once(
        "frames",
        CRASHED,
        a_length_of_zero="cell.raw(bytes(9))",
        a_length_of_four_gigabytes="cell.raw(b'\\xff\\xff\\xff\\xffo' + bytes(4))",
        an_announced_frame_of_90_MiB="cell.raw(struct.pack('>IcI', 90 * MIB, b'o', cell.isolate))\n"
        "cell.raw(bytes(80 * MIB))",
        an_unknown_kind="cell.frame('z', b'{}')",
        a_kind_of_the_engine="cell.frame('B', b'[]')",
        a_second_READY="cell.frame('r', b'[]')",
        a_READY_with_forged_layers=(
            """cell.frame('r', b'[{"name":"seccomp","active":true,"detail":"","remedy":""}]')"""
        ),
        a_program_that_nobody_asked_for="cell.frame('b', b'{}')",
        a_version_loaded_twice="""cell.frame('l', b'{"handlers":["main"]}')""",
        a_refusal_of_a_loaded_version="""cell.frame('e', b'{"name":"E","message":"m"}')""",
        a_refusal_that_is_no_JSON="cell.frame('e', b'[[')",
        an_output_without_its_head="cell.frame('o', b'abc')",
        an_output_that_is_no_list="cell.output_raw(b'{}')",
        an_output_that_is_no_JSON="cell.output_raw(b'[[0,')",
        an_output_that_is_not_UTF_8='cell.output_raw(b\'[[0,%d,"ok","\\xff\\xfe"]]\' % run)',
        an_output_of_a_million_brackets="cell.output_raw(b'[' * 1000000)",
        a_result_of_a_hundred_thousand_brackets=(
            "cell.output_raw(b'[[0,%d,\"ok\",' % run + b'[' * 100000 + b']' * 100000 + b']]')"
        ),
        five_thousand_outputs="for _ in range(5000):\n    cell.output()",
        a_stop_that_is_no_JSON="cell.frame('k', b'{')",
        a_stop_with_a_made_up_outcome=(
            "cell.stopped({'run': run, 'outcome': 'exploded', 'limit': None, 'log': []})"
        ),
        a_stop_that_calls_the_run_a_success=(
            "cell.stopped({'run': run, 'outcome': 'succeeded', 'limit': None, 'log': []})\n"
            "os._exit(0)"
        ),
        faults_of_the_cell="cell.frame('x', b'oops ' * 9000)\nos._exit(70)",
        the_end_of_its_process="os._exit(0)",
        a_hole_in_its_memory="ctypes.string_at(0)",
    )
)

FIELDS: Final = _once(
    "fields",
    CRASHED,
    a_run_of_text="cell.output([DONE, 'x', 'ok', 1])",
    a_run_of_null="cell.output([DONE, None, 'ok', 1])",
    a_run_that_is_a_fraction="cell.output([DONE, 1.5, 'ok', 1])",
    a_run_beyond_64_bits="cell.output_raw(b'[[0,99999999999999999999999,\"ok\",1]]')",
    a_made_up_status="cell.output([DONE, run, 'great', 1])",
    an_unknown_message="cell.output([9, run])",
    a_message_without_a_tag="cell.output([])",
    a_number_that_is_none="cell.output_raw(b'[[0,%d,\"ok\",NaN]]' % run)",
    a_result_cut_short='cell.output_raw(b\'[[0,%d,"ok",{"a":]]\' % run)',
    an_error_without_a_name="cell.output([DONE, run, 'threw', {'message': 1}])",
    an_error_that_is_a_list="cell.output([DONE, run, 'threw', []])",
    an_output_size_that_is_text="cell.output([DONE, run, 'output', 'x'])",
    an_output_size_below_zero="cell.output([DONE, run, 'output', -5])",
    a_stop_as_something_impossible=(
        "cell.output([DONE, run, 'stopped', {'outcome': 'cancelled', 'limit': None,"
        " 'error': None}])"
    ),
    a_log_at_a_time_of_text="cell.output([LOG, run, [['info', 'x', 'text']], 0])",
    a_log_at_an_impossible_time="cell.output([LOG, run, [['info', 10**30, 'text']], 0])",
    a_log_of_numbers="cell.output([LOG, run, [1, 2, 3], 0])",
    CPU_below_zero="cell.output([DONE, run, 'ok', 1, -1, 0, 0])",
    a_call_by_a_number="cell.output([CALL, run, 1, 7, {}])",
    a_call_numbered_by_text="cell.output([CALL, run, 'x', 'kv.get', {}])",
    arguments_that_are_no_JSON="cell.output_raw(b'[[1,%d,1,\"kv.get\",{]]' % run)",
)

OTHERS: Final = _once(
    "others",
    CRASHED + TIMED_OUT,
    a_result_for_a_run_that_it_does_not_have="cell.output([DONE, run + 1000, 'ok', 1])",
    a_result_for_a_run_below_zero="cell.output([DONE, -1, 'ok', 1])",
    results_for_a_thousand_runs=(
        "cell.output(*[[DONE, run + 1 + n, 'ok', 1] for n in range(1000)])"
    ),
    a_call_for_a_run_that_it_does_not_have=(
        "cell.output([CALL, run + 1, 1, 'kv.put', {'namespace': 'n', 'key': 'k', 'value': 1}])"
    ),
    a_log_for_a_run_that_it_does_not_have="cell.output([LOG, run + 1, [['info', 1, 'x']], 0])",
) + _once(
    "others",
    CRASHED + TIMED_OUT,
    a_result_for_an_isolate_that_it_does_not_have=(
        "cell.output([DONE, run, 'ok', 1], isolate=cell.isolate + 1)"
    ),
    a_result_for_an_isolate_of_the_zygote="cell.output([DONE, run, 'ok', 1], isolate=0)",
    a_stop_of_an_isolate_that_it_does_not_have=(
        "cell.frame('k', encode({'run': run, 'outcome': 'cpu_exceeded', 'limit': None,"
        " 'log': []}), isolate=cell.isolate + 1)"
    ),
)

_THREE_BATCHES: Final = """
def batch(messages):
    for run in starts(messages):
        state['run'] = run
        ask(run)
    for ok, value in answers(messages).values():
        cell.done(state['run'], {'ok': ok, 'value': value})
"""
_VICTIMS: Final = {
    "the value of a key of another project": (
        "'kv.get', {'namespace': 'victim', 'key': 'treasure'}"
    ),
    "the keys of another project": "'kv.list', {'namespace': 'victim'}",
    "the timeline of a device of another project": (
        "'devices.values', {'device': '$DEVICE', 'key': 'treasure'}"
    ),
    "the timeline of such a device by its token": (
        "'devices.values', {'device': '$TOKEN', 'key': 'treasure'}"
    ),
    "a write to a device of another project": (
        "'devices.write', {'device': '$TOKEN', 'values': [{'key': 'treasure', 'value': 'stolen'}]}"
    ),
    "a call of a function of another project": (
        "'function.call', {'function': 'victim', 'payload': 1}"
    ),
    "a message through a connection of another project": (
        "'connection.send', {'connection': 'VICTIM_HOOK', 'message': {'body': {}}}"
    ),
    "progress of a job of another project": "'job.progress', {'value': 0.5, 'job': '$RUN'}",
    "a request to the engine itself": "'fetch', {'url': '$ENGINE/metrics'}",
    "a request to the engine by IPv6": "'fetch', {'url': 'http://[::1]/'}",
    "a request to the metadata of a cloud": "'fetch', {'url': 'http://169.254.169.254/'}",
    "a file by fetch": "'fetch', {'url': 'file:///etc/passwd'}",
    "a call that does not exist": "'engine.shell', {'command': 'id'}",
    "a call with an attribute of the broker": "'__class__', {}",
    "arguments that are a list": "'kv.get', [1, 2]",
    "arguments that are null": "'kv.put', None",
    "a key with a NUL": "'kv.get', {'namespace': 'n', 'key': 'a\\x00b'}",
    "a key of 100 kB": "'kv.get', {'namespace': 'n', 'key': 'k' * 100000}",
    "a timer without end": "'timer', {'ms': -1e300}",
}
# Answered, of what is the attacker's own: its namespace of the same name, which is empty; its run.
_ITS_OWN: Final = (
    "the value of a key of another project",
    "the keys of another project",
    "progress of a job of another project",
)
CALLS: Final = tuple(
    Lie(
        name=name,
        group="host calls",
        ends=SUCCEEDED,
        refused=name not in _ITS_OWN,
        code=f"def ask(run):\n    cell.call(run, 1, {what})\n{_THREE_BATCHES}",
    )
    for name, what in _VICTIMS.items()
) + _once(
    "host calls",
    ("crashed", "host_calls_exceeded"),
    ten_thousand_calls_at_once=(
        "cell.output(*[[CALL, run, n, 'kv.get', {'namespace': 'n', 'key': 'k'}]"
        " for n in range(10000)])"
    ),
    the_same_call_two_thousand_times="cell.output(*[[CALL, run, 1, 'none', {}]] * 2000)",
)  # fmt: skip

LIMITS: Final = _once(
    "limits",
    TIMED_OUT + CRASHED,  # it speaks without knowing whether the engine has: out of turn, perhaps
    never_reading_while_many_answers_come=(
        "big = {'namespace': 'n', 'key': 'k', 'value': 'x' * 60000}\n"
        "cell.output([CALL, run, 1, 'kv.put', big])\n"
        "for first in range(2, 98, 16):\n    time.sleep(0.03)\n"
        "    cell.output(*[[CALL, run, n, 'kv.get', {'namespace': 'n', 'key': 'k'}]"
        " for n in range(first, first + 16)])\n"
        "time.sleep(60)"
    ),
) + _once(
    "limits",
    TIMED_OUT,
    never_an_answer="pass",
    an_endless_loop="while True: pass",
    an_endless_loop_on_eight_threads=(
        "def spin():\n    while True: pass\n"
        "for _ in range(8): threading.Thread(target=spin).start()"
    ),
    sleeping_for_ever="time.sleep(3600)",
    half_a_frame="cell.raw(struct.pack('>IcI', 100, b'o', cell.isolate) + b'half')",
    one_byte_at_a_time=(
        "for byte in struct.pack('>IcI', 60000, b'o', cell.isolate) + b'[' * 60000:\n"
        "    cell.raw(bytes([byte]))\n    time.sleep(0.01)"
    ),
) + _once(
    "limits",
    SUCCEEDED,
    a_log_with_a_made_up_level=(
        "cell.output([LOG, run, [['x' * 9999, 1, 'text']], 0], [DONE, run, 'ok', 1])"
    ),
    the_most_CPU_that_a_number_holds="cell.output([DONE, run, 'ok', 1], cpu_ns=2**64 - 1)",
    the_most_memory_that_a_number_holds="cell.output([DONE, run, 'ok', 1], peak_kib=2**32 - 1)",
    a_NUL_in_a_result="cell.output_raw(b'[[0,%d,\"ok\",\"\\\\u0000\"]]' % run)",
    a_result_with_a_key_twice="cell.output_raw(b'[[0,%d,\"ok\",{\"a\":1,\"a\":2}]]' % run)",
) + _once(
    "limits",
    CRASHED + TIMED_OUT,
    a_number_beyond_all="cell.output_raw(b'[[0,%d,\"ok\",1e999]]' % run)",
    half_a_character="cell.output_raw(b'[[0,%d,\"ok\",\"\\\\ud800\"]]' % run)",
    a_log_with_half_a_character=(
        "log = b'[2,%d,[[\"info\",1,\"\\\\ud800\"]],0]' % run\n"
        "cell.output_raw(b'[%b,\\n[0,%d,\"ok\",1]]' % (log, run))"
    ),
    a_hundred_thousand_log_lines=(
        "cell.output([LOG, run, [['info', 1, 'x']] * 100000, 0], [DONE, run, 'ok', 1])"
    ),
    a_log_line_of_20_MB="cell.output([LOG, run, [['info', 1, 'x' * 20000000]], 0])\nos._exit(0)",
    a_log_that_lost_fewer_than_no_lines=(
        "cell.output([LOG, run, [], -10**15], [DONE, run, 'ok', 1])"
    ),
    a_made_up_name_of_an_error=(
        "cell.output([DONE, run, 'threw', {'name': 'x' * 10**6, 'message': '', 'stack': ''}])"
    ),
    a_result_of_20_MB="cell.output([DONE, run, 'ok', 'x' * 20000000])",
)  # fmt: skip

_LATE: Final = tuple(
    Lie(name=name, group="out of turn", code=code, ends=ends)
    for name, ends, code in (
        (
            "an output before any batch",
            ("failed", "crashed", "timed_out"),
            (
                "def loaded():\n    cell.output([DONE, 1, 'ok', 'too early'])\n"
                "def batch(messages):\n    cell.done(starts(messages)[0], 1)"
            ),
        ),
        (
            "a version that dies as it is loaded",
            ("failed", "crashed"),
            "def loaded():\n    os._exit(0)",
        ),
        (
            "a version that loads and refuses",
            ("failed", "crashed"),
            (
                "def loaded():\n"
                """    cell.frame('e', b'{"name":"LinkError","message":"compile me anew"}')\n"""
                "def batch(messages):\n    cell.done(starts(messages)[0], 1)"
            ),
        ),
        (
            "an answer to a run that was ended",
            TIMED_OUT,
            (
                "def batch(messages):\n"
                "    for run in starts(messages):\n        state['run'] = run\n"
                "        cell.output([CALL, run, 1, 'timer', {'ms': 1}])\n"
                "    if answers(messages):\n        time.sleep(0.9)\n"
                "        cell.done(state['run'], 'too late')"
            ),
        ),
    )
)

LIES: Final = FRAMES + FIELDS + OTHERS + CALLS + LIMITS + _LATE
