"""Configuration: what is read, what is refused in which words, and that written files read back the same."""

import dataclasses
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimask.config import (
    Config,
    DataConfig,
    differences,
    from_dict,
    options,
    packaged_names,
    read_config,
    to_dict,
    to_toml,
    with_settings,
)
from minimask.errors import InputError, one_line
from minimask.models.networks import resolved


def refusal(*settings):
    with pytest.raises(InputError) as caught:
        with_settings(Config(), settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_settings_take_toml_values_with_optional_quotes_and_brackets():
    config = with_settings(
        Config(),
        [
            "train.steps=7",
            "data.scale=0.5, 2",
            'data.train="a b.json"',
            "data.images=12",
            "train.milestones=[3, 5]",
        ],
    )
    assert config.train.steps == 7
    assert config.data.scale == (0.5, 2.0)
    assert config.data.train == "a b.json"
    assert config.data.images == "12"  # a folder may be called 12
    assert config.train.milestones == (3, 5)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        (".02", 0.02),
        ("1.", 1.0),
        ("+.5", 0.5),
        ("+1e-3", 1e-3),
        ("1.e-3", 1e-3),
        ("1E-3", 1e-3),
        ("1_000", 1e3),
    ],
)
def test_a_number_may_be_written_as_other_programs_write_it(written, value):
    assert with_settings(Config(), [f"train.learning_rate={written}"]).train.learning_rate == value


def test_numbers_in_a_list_may_be_too_and_text_stays_as_it_is():
    config = with_settings(Config(), ["data.scale=.5, 2.", "data.images=a.5/.b.", "train.steps=1_000"])
    assert (config.data.scale, config.data.images, config.train.steps) == ((0.5, 2.0), "a.5/.b.", 1000)


@pytest.mark.parametrize("written", [".", "1..2", ".5.5", "-.5", "1e.5", "0,02"])
def test_what_is_no_number_anywhere_is_still_refused(written):
    with pytest.raises(InputError, match=r"train\.learning_rate must be"):
        with_settings(Config(), [f"train.learning_rate={written}"])


def test_an_integer_is_a_float_where_a_float_is_wanted():
    value = with_settings(Config(), ["train.learning_rate=1"]).train.learning_rate
    assert value == 1.0 and isinstance(value, float)


@pytest.mark.parametrize(
    "setting, words",
    [
        ("train.learning_rat=1", "did you mean train.learning_rate?"),
        ("=3", "expected KEY=VALUE, such as train.steps=200"),
        ("steps=4", "did you mean train.steps?"),
        ("train.crop=4", "did you mean data.crop?"),
        ("train.foo=4", "there are train.weights, train.backbone_weights"),
        ("train.steps=1.5", "train.steps must be a whole number, is 1.5"),
        ("train.steps=true", "train.steps must be a whole number, is true"),
        ("train.steps=0", "train.steps must be at least 1, is 0"),
        ("train.learning_rate=0", "train.learning_rate must be more than 0, is 0"),
        ("train.learning_rate=nan", "train.learning_rate must be a finite number, is NaN"),
        ("model.score_threshold=1.5", "model.score_threshold must be at most 1, is 1.5"),
        ("data.flip_vertical=1", "data.flip_vertical must be true or false, is 1"),
        ("train.schedule=cosin", "did you mean cosine?"),
        ("data.scale=1", "data.scale must be a list of 2 numbers, is [1]"),
        ("data.scale=2,1", "data.scale must be [least, greatest], is [2.0, 1.0]"),
        ("train.milestones=5,3", "train.milestones must rise"),
        ("train.batch_size=1000000000", "train.batch_size must be at most 4096, is 1000000000"),
        ("train.gpu_memory_limit=1e300", "train.gpu_memory_limit must be at most 1048576, is 1e+300"),
        ("train.steps", "expected KEY=VALUE"),
    ],
)
def test_a_wrong_setting_is_named_with_its_mend(setting, words):
    message = refusal(setting)
    assert message.startswith(f"--set {setting}: ") and words in message


@pytest.mark.parametrize(
    "setting, words",
    [
        ("train.steps=" + "[" * 3000, "the value has brackets within brackets, more than 16 deep"),
        ("data.scale=" + "[" * 3000 + "]" * 3000, "the value has brackets within brackets"),
        ("train.milestones={a = " + "{a = " * 3000, "the value has brackets within brackets"),
        ("train.steps=" + "9" * 5000, "the value has a number with too many digits"),
        ("train.learning_rate=1" + "0" * 400, "train.learning_rate must be a finite number, is 1000"),
        ("train.learning_rate=1e400", "train.learning_rate must be a finite number, is Infinity"),
        ("train.seed=" + "9" * 400, "train.seed must be a whole number of 64 bits, is 999"),
        ("train.steps=0x" + "f" * 5000, "train.steps must be a whole number of 64 bits, is int too large"),
        ("train.batch_size={" + "a." * 50_000 + "a = 1}", "the value has a dotted key of more than 16 parts"),
        ("train.batch_size=" + "1" * 300_000, "the value has more than 262,144 characters"),
        ("train.steps=3\ntrain.seed=4", "train.steps must be a whole number, is"),
        ("a." * 50_000 + "a=1", "there is no option a.a.a"),
        ("\x1b[2J=1", r"there is no option \x1b[2J"),
        ("train.schedule=" + "x" * 100_000, "train.schedule cannot be"),
        ("data.crop=70000", "data.crop must be at most 65536, is 70000"),
        ("model.min_size=1" + "0" * 30, "model.min_size must be a whole number of 64 bits"),
        ("data.scale=1e-9,1", "data.scale must be at least 0.01, is 1e-09"),
        ('data.train="a\\u0000b"', r'data.train must be text that can name a file, is "a\u0000b"'),
        ("data.train=\ud800", r'data.train must be text that can name a file, is "\ud800"'),
        ("train.milestones=" + ",".join(["9"] * 2000), "train.milestones must rise, is [9, 9"),
    ],
)
def test_an_extreme_setting_is_one_short_line(setting, words):
    message = refusal(setting)
    assert words in message and len(message) < 600 and one_line(message) == message
    assert message.startswith(f"--set {one_line(setting, 120)}: ")


@pytest.mark.parametrize(
    "text, words",
    [
        ("x = " + "[" * 3000, "brackets within brackets"),
        ("[train]\nsteps = " + "9" * 5000, "a number with too many digits"),
        ("[train]\nlearning_rate = 1" + "0" * 400, "must be a finite number"),
        ("a." * 50_000 + "a = 1", "a dotted key of more than 16 parts"),
        ("[" + "a." * 50_000 + "a]", "a dotted key of more than 16 parts"),
        ("[[" + "a . " * 50_000 + "a]]", "a dotted key of more than 16 parts"),
        ("'a'.\"b\"." * 10_000 + "a = 1", "a dotted key of more than 16 parts"),
        ('x = """a"""""\n' + "a." * 50_000 + "a = 1", "a dotted key of more than 16 parts"),
        ('x = {b = """a"""", ' + "a." * 50_000 + "a = 1}", "a dotted key of more than 16 parts"),
        ("x = {" + "a." * 50_000 + "a = 1}", "a dotted key of more than 16 parts"),
        ("x" * 300_000, "more than 262,144 characters"),
        ("é" * 140_000, "more than 262,144 characters|not TOML"),
        ("[\x1b[31m]\nx = 1", "not TOML"),
        ('"\\u001b" = 1', r"there is no option \\x1b"),
        ('["\\u001b[2J"]\nx = 1', r"there is no section \[\\x1b\[2J\]"),
        ("train = 1979-05-27", "there is no option train"),
        ("[train]\nsteps = 1979-05-27", 'train.steps must be a whole number, is "1979-05-27"'),
        ("[train]\n" + '"" = 1\n' * 3, "not TOML"),
    ],
)
def test_an_extreme_file_is_refused_in_one_short_line_and_little_memory(text, words, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=words) as caught:
            read_config(str(path))
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and len(message) < 600 and one_line(message) == message


def test_what_looks_like_a_long_key_in_a_text_or_comment_is_none(tmp_path):
    dots = ".".join("abcdefghijklmnopqrstuvwxyz")
    path = tmp_path / "mine.toml"
    path.write_text(
        f"# {dots} [[[[[[[[[[[[[[[[[[[[[[\n[data]\ntrain = \"{dots}\"  # {dots}\nimages = '{dots}'\n"
        f'val = """{dots}\n\\"""{dots}""""\nval_images = \'\'\'[{{\n{dots}\'\'\'\n'
    )
    data = read_config(str(path)).data
    assert (data.train, data.images, data.val_images) == (dots, dots, f"[{{\n{dots}")
    assert data.val == f'{dots}\n"""{dots}"'
    assert with_settings(Config(), [f"data.train={'[' * 100}{dots}"]).data.train == "[" * 100 + dots


def test_a_file_as_spreadsheets_and_windows_write_it_is_read(tmp_path):
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbf[train]\r\nsteps = 7\r\n")
    assert read_config(str(tmp_path / "bom.toml")).train.steps == 7
    (tmp_path / "wide.toml").write_bytes("[train]".encode("utf-16"))
    with pytest.raises(InputError, match=r"wide\.toml: not UTF-8 text \(save it as UTF-8\); give a"):
        read_config(str(tmp_path / "wide.toml"))
    for name in ("a\0b", "x" * 5000):
        with pytest.raises(InputError, match="give a TOML file or one of the names"):
            read_config(name)


def test_a_path_that_is_no_utf8_is_kept_and_stands_in_the_file_as_a_comment(tmp_path):
    config = with_settings(Config(), ["data.train=caf\udce9.json", "data.images=é"])
    assert config.data.train == "caf\udce9.json" and from_dict(to_dict(config), "it") == config
    text = to_toml(config)
    assert "\n# train = 'caf\\udce9.json' " in text
    (tmp_path / "written.toml").write_bytes(text.encode("utf-8"))
    read = read_config(str(tmp_path / "written.toml"))
    assert read.data.train == "" and read.data.images == "é"


def test_a_file_is_named_in_what_it_gets_wrong(tmp_path):
    for text, words in [
        ("[train]\nsteps = 'many'", 'train.steps must be a whole number, is "many"'),
        ("[trian]\nsteps = 3", "there is no section [trian]; did you mean [train]?"),
        ("steps = 3", "there is no option steps; did you mean train.steps?"),
        ("[train\n", "not TOML"),
    ]:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            read_config(str(path))
        assert str(caught.value).startswith(str(path)) and words in str(caught.value)


def test_a_missing_file_says_which_names_are_packaged(tmp_path):
    with pytest.raises(
        InputError, match=r"No such file or directory; give a TOML file or one of the names .*demo"
    ):
        read_config(str(tmp_path / "none.toml"))
    with pytest.raises(InputError, match="Is a directory"):
        read_config(str(tmp_path))


def test_every_packaged_configuration_is_valid_and_survives_being_written(tmp_path):
    assert {"demo", "quick", "nuclei"} <= set(packaged_names())
    for name in packaged_names():
        config = read_config(name)
        (tmp_path / "written.toml").write_text(to_toml(config), encoding="utf-8")
        assert read_config(str(tmp_path / "written.toml")) == config
        assert from_dict(to_dict(config), "a checkpoint") == config


@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    rate=st.floats(min_value=1e-300, max_value=1e300),
)
def test_any_text_and_number_survive_being_written(tmp_path_factory, text, rate):
    config = from_dict({"data": {"train": text}, "train": {"learning_rate": rate}}, "here")
    path = tmp_path_factory.mktemp("toml") / "written.toml"
    path.write_bytes(to_toml(config).encode("utf-8"))
    assert read_config(str(path)) == config


def test_a_file_changes_only_what_it_names(tmp_path):
    path = tmp_path / "part.toml"
    path.write_text("[data]\ncrop = 64\n")
    base = with_settings(Config(), ["train.steps=9"])
    config = read_config(str(path), base)
    assert config == dataclasses.replace(base, data=dataclasses.replace(DataConfig(), crop=64))
    assert differences(base, config) == ["data.crop is 64, was 256"]


def test_every_option_states_its_meaning():
    assert all(entry.metadata["help"] for _, entry in options())


def test_what_is_left_to_the_network_is_filled_in_by_its_recipe():
    small = resolved(Config())
    assert (small.train.learning_rate, small.train.reference_batch) == (0.02, 2)
    assert small.model.norm is None and small.model.trainable_layers is None
    large = resolved(with_settings(Config(), ["model.name=maskrcnn_resnet50_fpn"]))
    assert (large.train.learning_rate, large.train.reference_batch) == (0.02, 16)  # the paper's
    assert (large.model.norm, large.model.trainable_layers) == ("group", 5)
    assert resolved(large) == large
    given = ["model.name=maskrcnn_resnet50_fpn", "model.norm=frozen", "train.learning_rate=0.1"]
    chosen = resolved(with_settings(Config(), given))
    assert (chosen.model.norm, chosen.model.trainable_layers) == ("frozen", 5)
    assert (chosen.train.learning_rate, chosen.train.reference_batch) == (0.1, 16)
    with pytest.raises(InputError, match=r"model\.norm: maskrcnn_small has no such choice; leave it out"):
        resolved(with_settings(Config(), ["model.norm=batch"]))


@pytest.mark.parametrize(
    "values, limit",
    [
        ({"model": {"detections": 100}, "evaluate": {"max_detections": 400}}, 400),
        ({"evaluate": {"max_detections": 300}}, 300),
        ({"model": {"detections": 5}, "evaluate": {"max_detections": 100}}, 5),
        ({"model": {"detections": 7}, "evaluate": {"max_detections": 400}}, 7),
        ({"model": {"name": "maskrcnn_small"}, "evaluate": {"max_detections": 10**6}}, 65_535),
    ],
)
def test_the_limit_of_detections_of_earlier_versions_is_understood(values, limit, tmp_path):
    assert from_dict(values, "old").model.detections == limit
    lines = [
        f"[{section}]\n" + "".join(f"{k} = {v!r}\n" for k, v in entries.items())
        for section, entries in values.items()
    ]
    (tmp_path / "old.toml").write_text("".join(lines))
    assert read_config(str(tmp_path / "old.toml")).model.detections == limit


def test_the_old_name_of_the_limit_is_another_of_the_new_one():
    assert with_settings(Config(), ["evaluate.max_detections=400"]).model.detections == 400
    assert "evaluate" not in to_dict(Config()) and "max_detections" not in to_toml(Config())
    with pytest.raises(InputError, match=r"model\.detections must be at most 65535, is 65536"):
        with_settings(Config(), ["model.detections=65536"])
    with pytest.raises(InputError, match=r"model\.detections must be a whole number, is"):
        from_dict({"evaluate": {"max_detections": "many"}}, "old")
    with pytest.raises(InputError, match=r"no section \[evaluate\]"):
        from_dict({"evaluate": {"max_detections": 4, "other": 1}}, "old")


def test_the_packaged_configurations_have_the_limits_they_had():
    limits = {name: read_config(name).model.detections for name in ("demo", "nuclei", "quick")}
    assert limits == {"demo": 300, "nuclei": 400, "quick": 100}
