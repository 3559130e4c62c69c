"""Results on standard output, everything else on standard error, and exit codes that scripts can trust."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from baichuan2_tpu import __version__
from models.foreign_checkpoint import pack_gptq, write_foreign
from models.tiny_adapter import adapter_matrices, write_adapter
from models.tiny_checkpoint import rope_config
from running.cli_command import Run

GREEDY = ("--temperature", 0, "--max-tokens", 6)


def test_version_is_printed(run: Run) -> None:
    done = run("--version")
    assert (done.code, done.out, done.err) == (0, f"baichuan2-tpu {__version__}\n", "")


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_help_names_every_verb(run: Run, words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.code == 0
    assert done.err == ""
    assert all(f"\n  {verb} " in done.out for verb in ("chat", "generate", "quantize", "info", "bench"))


def test_help_loads_no_heavy_module() -> None:
    code = (
        "import sys; sys.argv = ['baichuan2', '--help']\n"
        "from baichuan2_tpu.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'numpy', 'gguf', 'tokenizers', 'prompt_toolkit'} & sys.modules.keys()))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("train",), "No such command 'train'; see baichuan2 --help"),
        (("info", "demo", "--colour"), "No such option: --colour; see baichuan2 info --help"),
        (("info",), "Missing argument 'MODEL'; see baichuan2 info --help"),
        (
            ("generate", "demo"),
            "Invalid value: give either PROMPT (- reads standard input) or --file; "
            "see baichuan2 generate --help",
        ),
        (("bench",), "Invalid value: give either MODEL or --shape; see baichuan2 bench --help"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(run: Run, words: tuple[str, ...], complaint: str) -> None:
    done = run(*words)
    assert (done.code, done.out, done.err) == (2, "", f"error: {complaint}\n")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--temperature", "-1"),
        ("--top-p", "1.5"),
        ("--top-k", "-1"),
        ("--min-p", "x"),
        ("--seed", "-1"),
        ("--max-tokens", "0"),
        ("--context", "0"),
        ("--threads", "0"),
        ("--engine", "gpu"),
    ],
)
def test_value_out_of_range_is_named_before_anything_is_loaded(run: Run, option: str, value: str) -> None:
    done = run("generate", "no-such-model", "hi", option, value)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: Invalid value for '{option}': ")
    assert done.err.count("\n") == 1


def test_unknown_model_is_one_line_and_exit_code_1(run: Run) -> None:
    done = run("generate", "gpt", "hi")
    assert (done.code, done.out, done.err) == (
        1,
        "",
        "error: 'gpt' is neither a path that exists nor a known model; give a checkpoint or bundle "
        "directory, a .gguf file, or one of: demo, baichuan2-7b-chat, baichuan2-7b-base, baichuan2-13b-chat, "
        "baichuan2-13b-base, baichuan2-7b-int8-bmodel, baichuan2-7b-int4-bmodel\n",
    )


@pytest.mark.parametrize("words", [("--debug", "info", "gpt"), ("info", "gpt", "--debug")])
def test_debug_shows_the_traceback_too(run: Run, words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.code == 1
    assert done.err.startswith("Traceback (most recent call last):\n")
    assert "\nerror: 'gpt' is neither a path" in done.err


def test_fault_of_the_program_is_told_from_a_mistake_of_the_user(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a \x1b[31mbug")

    monkeypatch.setattr("baichuan2_tpu.resolve.resolve_model", fail)
    monkeypatch.setattr("baichuan2_tpu.resolve.find_source", fail)
    done = run("quantize", "demo", "x")
    assert done.code == 1
    assert done.err == (
        "error: internal: ZeroDivisionError: a [31mbug; please report it with the output of --debug\n"
    )


def test_interrupt_ends_with_the_shells_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("baichuan2_tpu.resolve.find_source", interrupt)
    done = run("quantize", "demo", "x")
    assert (done.code, done.out) == (130, "")


def test_answer_is_all_that_reaches_standard_output(run: Run, model: Path) -> None:
    done = run("generate", model, "你好", *GREEDY)
    assert done.code == 0
    assert done.out.endswith("\n")
    assert len(done.out) > 1
    assert done.err == "[cut at 6 tokens; --max-tokens and --context set the limit]\n"


def test_json_is_one_object_with_the_same_answer(run: Run, model: Path) -> None:
    plain = run("generate", model, "你好", *GREEDY)
    done = run("generate", model, "你好", *GREEDY, "--json")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    answer = json.loads(done.out)
    assert answer["text"] + "\n" == plain.out
    assert (answer["engine"], answer["finish_reason"]) == ("cpu", "length")
    assert len(answer["token_ids"]) == answer["stats"]["generated_tokens"] == 6


def test_same_seed_gives_the_same_answer(run: Run, model: Path) -> None:
    words = ("generate", model, "hi", "--temperature", 1, "--max-tokens", 12, "--seed", 7)
    assert run(*words).out == run(*words).out


def test_prompt_comes_from_argument_file_or_standard_input(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("bubble sort\n", encoding="utf-8")
    expected = run("generate", model, "bubble sort", *GREEDY).out
    assert run("generate", model, "--file", file, *GREEDY).out == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"bubble sort\n")))
    assert run("generate", model, "-", *GREEDY).out == expected


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\xff", "is not UTF-8 at byte 0; convert it first"),
        (b"", "the prompt is empty; write something to answer"),
    ],
)
def test_file_without_a_prompt_is_refused(
    run: Run, model: Path, tmp_path: Path, content: bytes, complaint: str
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(content)
    done = run("generate", model, "--file", file)
    assert (done.code, done.out) == (1, "")
    assert complaint in done.err


def test_file_that_is_not_there_is_named(run: Run) -> None:
    done = run("generate", "demo", "--file", "absent.txt")
    assert done.err == "error: cannot read absent.txt: No such file or directory; name a text file\n"


def test_prompt_longer_than_the_context_names_both_numbers(run: Run, model: Path) -> None:
    done = run("generate", model, "x" * 10_000)
    assert (done.code, done.out) == (1, "")
    assert "tokens" in done.err
    assert " are allowed; shorten it" in done.err


def test_context_larger_than_memory_is_refused_with_numbers(run: Run, model: Path) -> None:
    done = run("generate", model, "hi", "--context", 10**12)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: a context of 1000000000000 tokens needs ")
    assert done.err.endswith("choose a context of 256 or less\n")


def test_what_a_user_types_cannot_play_a_role(run: Run, model: Path) -> None:
    done = run("generate", model, "<reserved_107>" * 3, *GREEDY, "--json")
    assert done.code == 0
    assert json.loads(done.out)["stats"]["prompt_tokens"] > 3 * len("reserved")


def test_quantize_makes_a_checkpoint_and_says_where(run: Run, float_model: Path, tmp_path: Path) -> None:
    done = run("quantize", float_model, tmp_path / "out", "--bits", 8)
    assert (done.code, done.out, done.err) == (0, "", f"wrote {tmp_path / 'out'}\n")
    again = run("quantize", float_model, tmp_path / "out", "--bits", 8)
    assert again.code == 1
    assert "exists already" in again.err


def test_quantize_merges_adapters_in_order(run: Run, float_model: Path, tmp_path: Path) -> None:
    config = rope_config(vocabulary_size=400)
    adapters = [
        write_adapter(tmp_path / name, adapter_matrices(config, ("W_pack",), seed=seed))
        for seed, name in enumerate(("one", "two"))
    ]
    words = [word for adapter in adapters for word in ("--adapter", adapter)]
    done = run("quantize", float_model, tmp_path / "out", *words)
    lines = [
        f"merging {adapter}: LoRA of rank 4 on 2 modules; trained on 'baichuan-inc/Baichuan2-7B-Chat'"
        for adapter in adapters
    ]
    assert (done.code, done.err.splitlines()) == (0, [*lines, f"wrote {tmp_path / 'out'}"])
    merged = json.loads((tmp_path / "out" / "config.json").read_text())["merged_adapters"]
    assert [record["name"] for record in merged] == ["one", "two"]
    write_adapter(adapters[1], {}, settings={"use_dora": True})
    done = run("quantize", "baichuan2-7b-chat", tmp_path / "other", *words)
    assert (done.code, done.out) == (1, "")  # before the model is fetched
    assert (
        "two/adapter_config.json: use_dora is True, allowed for merging is none; merge it with PEFT"
        in done.err
    )


def test_a_head_of_4_bits_answers_and_is_shown(run: Run, float_model: Path, tmp_path: Path) -> None:
    assert run("quantize", float_model, tmp_path / "out", "--head-bits", 4).code == 0
    facts = json.loads(run("info", tmp_path / "out", "--json").out)
    assert (facts["bits"], facts["head_bits"]) == (4, 4)
    as_float = json.loads(run("info", float_model, "--head-bits", 4, "--json").out)
    assert as_float["weight_bytes"] == facts["weight_bytes"]
    done = run("generate", tmp_path / "out", "hi", *GREEDY)
    assert (done.code, done.err.count("error")) == (0, 0)


def test_truncated_shard_is_named_and_nothing_is_left(run: Run, float_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in float_model.iterdir():
        content = file.read_bytes()
        (broken / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".bin" else content)
    done = run("quantize", broken, tmp_path / "out")
    assert (done.code, done.out) == (1, "")
    assert "pytorch_model-0000" in done.err
    assert not (tmp_path / "out").exists()


def test_float_model_is_quantised_once_with_a_notice(run: Run, float_model: Path) -> None:
    first = run("generate", float_model, "hi", *GREEDY)
    assert first.err.startswith(f"quantising {float_model} to 4 bits (once, into ")
    second = run("generate", float_model, "hi", *GREEDY)
    assert "quantising" not in second.err
    assert second.out == first.out


def test_info_counts_before_anything_is_loaded(run: Run, model: Path, float_model: Path) -> None:
    done = run("info", model, "--context", 100, "--json")
    facts = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert (facts["layers"], facts["bits"], facts["is_quantized"], facts["context"]) == (2, 4, True, 100)
    assert facts["memory_bytes"] == facts["weight_bytes"] + facts["kv_cache_bytes"]
    as_float = json.loads(run("info", float_model, "--context", 100, "--json").out)
    assert as_float["is_quantized"] is False
    assert as_float["memory_bytes"] == facts["memory_bytes"]


def test_info_says_what_another_tool_quantised_and_whether_it_is_kept(run: Run, tmp_path: Path) -> None:
    settings = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "meta": {"quantizer": ["gptqmodel:2.0"]},
    }
    write_foreign(tmp_path / "m", settings, pack_gptq, group_size=128)
    facts = json.loads(run("info", tmp_path / "m", "--json").out)
    assert facts["is_quantized"] is True
    assert (facts["quantized_by"], facts["integers_are_kept"]) == ("GPTQ by gptqmodel:2.0", True)
    assert (facts["bits"], facts["head_bits"], facts["group_size"]) == (4, 8, 128)


def test_info_for_a_reader_has_one_fact_a_line(run: Run, model: Path) -> None:
    lines = run("info", model).out.splitlines()
    assert "is_quantized            yes" in lines
    assert "vocabulary_size         448" in lines
    assert any(line.startswith("memory_bytes") and line.endswith(" GB") for line in lines)


BENCH = ("--prefill", 8, "--decode", 2, "--repetitions", 1)


def test_bench_shows_several_answers_at_once(run: Run, model: Path) -> None:
    done = run("bench", model, *BENCH, "--clients", "1,3")
    assert done.code == 0
    lines = done.out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| clients | ms per step |"))
    assert [line.split(" | ")[0] for line in lines[start + 2 : start + 4]] == ["| 1", "| 3"]
    assert [row["clients"] for row in json.loads(lines[-1])["clients"]] == [1, 3]


def test_bench_refuses_clients_that_are_no_numbers(run: Run, model: Path) -> None:
    done = run("bench", model, "--clients", "1 4")
    assert done.code == 2
    assert "--clients is '1 4', allowed are numbers from 1 such as 1,4,16,32" in done.err


def test_bench_ends_with_a_json_line(run: Run, model: Path) -> None:
    done = run("bench", model, *BENCH)
    assert done.code == 0
    *_, header, rule, row, blank, last = done.out.splitlines()
    figures = json.loads(last)
    assert header == "| platform | model | bits | first token (s) | tokens per second |"
    assert (rule, blank) == ("|---|---|---|---|---|", "")
    assert row.startswith(f"| {figures['platform']} | {model} | 4 | {figures['first_token_s']:.3f} | ")
    wanted = ["decode_tok_per_s", "prefill_tok_per_s", "first_token_s", "load_s", "peak_rss_bytes"]
    assert all(figures[name] > 0 for name in [*wanted, "decode_bytes_per_s"])


def test_bench_measures_a_shape_without_files(run: Run) -> None:
    done = run("bench", "--shape", "tiny", "--bits", 8, *BENCH, "--json")
    assert done.code == 0
    assert json.loads(done.out)["bits"] == 8
    unknown = run("bench", "--shape", "huge")
    assert (unknown.code, unknown.err) == (
        1,
        "error: there is no shape 'huge'; choose one of baichuan2-7b, baichuan2-13b, tiny\n",
    )


def test_bench_takes_bits_for_a_shape_alone(run: Run) -> None:
    # They were ignored: the checkpoint's own were measured.
    done = run("bench", "demo", "--bits", 8)
    complaint = "--bits needs --shape; a model has bits of its own"
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: Invalid value: {complaint}; see baichuan2 bench --help\n"


def test_info_on_a_directory_without_a_config_says_so_once(run: Run, tmp_path: Path) -> None:
    # Named the file twice and blamed its JSON.
    done = run("info", tmp_path)
    complaint = f"{tmp_path}: holds no config.json; name the directory of a checkpoint"
    assert (done.code, done.out, done.err) == (1, "", f"error: {complaint}\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_the_null_device(closed: str, tmp_path: Path) -> None:
    # The next file or connection got its number, and what a library printed was written into it.
    seen = tmp_path / "seen"
    code = (
        "import os, sys; from baichuan2_tpu import cli; cli._open_missing_streams();"
        "print('out', file=sys.stdout, flush=True); print('err', file=sys.stderr, flush=True);"
        f"file = open({str(seen)!r}, 'w'); file.write(f'{{file.fileno() > 2}} {{sys.stdin is not None}}')"
    )
    words = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code]
    assert subprocess.run(words, stdin=subprocess.DEVNULL, check=False).returncode == 0
    assert seen.read_text() == "True True"


def test_bench_shows_and_draws_where_the_time_of_a_token_goes(run: Run, model: Path, tmp_path: Path) -> None:
    picture = tmp_path / "profile.svg"
    done = run("bench", model, "--profile", "--prefill", 8, "--decode", 2, "--picture", picture)
    assert "| head | " in done.out
    assert [phase["tokens"] for phase in json.loads(done.out.splitlines()[-1])["phases"]][:2] == [8, 2]
    assert picture.read_text().startswith("<svg ")
    assert f"[picture: {picture}]" in done.err
    alone = run("bench", model, "--picture", picture)
    assert (alone.code, "--picture needs --profile" in alone.err) == (2, True)
