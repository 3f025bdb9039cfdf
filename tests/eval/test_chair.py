"""CHAIR counts what captions make up: exact in the generated world, by hand on COCO's format, fair in length."""

from __future__ import annotations

import base64
import json
import random
import re
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eval import scaling
from eval.benchmarks import chair as benchmark
from eval.benchmarks import write_tsv
from eval.chair import Caption, Synonyms, cut, read_caption, read_synonyms, score_captions, scores
from eval.outcomes import hallucination, write_outcomes
from eval.results import ITEM_COLUMNS, METRIC_COLUMNS, Paper
from eval.study import Missing, Study
from eval.tsv import read_benchmark, write_predictions
from prior.config import Statistics
from prior.corpus.scenes import COLOURS, SHAPES, pair, scene
from prior.errors import UserError
from tests.eval import synthetic

NO_PAPER = Paper(pd.DataFrame(columns=["claim", "arch", "value", "source"]), synthetic.metrics()[:0])

# A made-up kitchen; "cup" and "hot cup" are different things, and "baby" is one where no "baby fox" is meant.
TABLE = """person, woman, baby
fox, vixen, baby fox
cup, mug

hot cup, thermos flask
tea-pot
glass
"""
INSTANCES = {
    "images": [
        {"id": 7, "file_name": "val/a.jpg"},
        {"id": 9, "file_name": "b-1.png"},
        {"id": 11, "file_name": "c.jpg"},
    ],
    "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "Mug"}, {"id": 5, "name": "hot cup"}],
    "annotations": [
        {"image_id": 7, "category_id": 1},
        {"image_id": 7, "category_id": 1},
        {"image_id": 9, "category_id": 2},
        {"image_id": 9, "category_id": 5},
    ],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Synonyms:
    path = tmp_path_factory.mktemp("world") / "CHAIR.synonyms.txt"
    path.write_text(benchmark.synonyms(), encoding="utf-8")
    return read_synonyms(path)


@pytest.fixture
def kitchen(tmp_path: Path) -> Synonyms:
    (tmp_path / "synonyms.txt").write_text(TABLE, encoding="utf-8")
    return read_synonyms(tmp_path / "synonyms.txt")


def test_true_captions_of_the_world_make_nothing_up_and_a_changed_colour_is_found(world: Synonyms) -> None:
    draw = random.Random(0)
    mentioned = 0
    for index in range(1500):
        caption = pair("val", index, 3, 24)["caption"]
        there = {thing.name for thing in scene("val", index, 3).things}
        read = read_caption(caption, world)
        assert set(read.objects) <= there, caption
        mentioned += len(set(read.objects) & there)
        if not read.objects:
            continue
        # Another colour before the shape of a mention, one in which nothing of this shape is there.
        colour, shape = draw.choice(read.objects).split()
        other = draw.choice([new for new in COLOURS if f"{new} {shape}" not in there])
        changed = read_caption(re.sub(rf"\b{colour} (?={shape})", f"{other} ", caption), world)
        assert f"{other} {shape}" in set(changed.objects) - there, caption
        assert scores([read, changed], [there, there])[0]["value"] == 50
    assert mentioned > 1500


def test_pictures_of_the_world_are_the_corpus_own_with_exactly_their_objects(tmp_path: Path) -> None:
    write_tsv(benchmark.rows(30, 0, 3, 24), tmp_path / "CHAIR.tsv")
    table = read_benchmark(tmp_path / "CHAIR.tsv")
    assert list(table.columns) == ["index", "image", "objects"] and list(table["index"]) == [str(i) for i in range(30)]
    by_image = {pair("val", index, 3, 24)["image"]: index for index in range(2300)}
    asked = [by_image[base64.b64decode(image)] for image in table["image"]]
    assert len({row["image"] for row in benchmark.rows(300, 0, 3, 24)}) == 300
    for index, objects in zip(asked, table["objects"], strict=True):
        assert json.loads(objects) == sorted({f"{t.colour} {t.shape}" for t in scene("val", index, 3).things})
    assert benchmark.rows(30, 0, 3, 24) == benchmark.rows(30, 0, 3, 24) != benchmark.rows(30, 1, 3, 24)
    names = [line.split(", ") for line in benchmark.synonyms().splitlines()]
    assert {name for name, _ in names} == {f"{colour} {shape}" for colour, shape in product(COLOURS, SHAPES)}
    assert ["purple cross", "purple crosses"] in names


@pytest.mark.parametrize(
    ("caption", "objects", "words"),
    [
        ("", [], 0),
        (" — !? ", [], 0),
        ("nothing of note", [], 3),
        ("A Woman with two MUGS, a mug.", ["person", "cup", "cup"], 7),
        ("a hot cup", ["hot cup"], 3),
        ("hot cups and a cup", ["hot cup", "cup"], 5),
        ("it is hot, cup in hand", ["cup"], 6),
        ("a baby fox beside a baby", ["fox", "person"], 6),
        ("foxes, vixens and women", ["fox", "fox", "person"], 4),
        ("cupboard, teacup, cup_1, mugged: glassy", [], 5),
        ("the fox's cup, the women’s thermos flasks", ["fox", "cup", "person", "hot cup"], 7),
        ("tea pots, a tea-pot and a hot-cup", ["tea-pot", "tea-pot", "hot cup"], 7),
        ("a fox-like cup holder", ["cup"], 4),
        ("ｃｕｐ, 茶杯 und Füchse\tfox\ncup", ["cup", "fox", "cup"], 6),
        ("(cup)/'mug' \"glasses\"", ["cup", "cup", "glass"], 3),
    ],
)
def test_mentions(kitchen: Synonyms, caption: str, objects: list[str], words: int) -> None:
    read = read_caption(caption, kitchen)
    assert (read.objects, read.words) == (objects, words)


def test_scores_by_hand(kitchen: Synonyms) -> None:
    captions = ["a woman, a mug, a mug and a fox", "a hot cup", "", "a glass"]
    there = [{"person", "fox"}, {"cup", "hot cup"}, {"cup"}, set()]
    found = {row["metric"]: row for row in scores([read_caption(text, kitchen) for text in captions], there)}
    # Made up: the two mugs and the glass, in two of four captions; six mentions in all.
    assert (found["chair_s"]["value"], found["chair_s"]["n_items"]) == (50, 4)
    assert (found["chair_i"]["value"], found["chair_i"]["n_items"]) == (50, 6)
    # There: five objects; mentioned of them: person, fox, hot cup.
    assert (found["recall"]["value"], found["recall"]["n_items"]) == (60, 5)
    assert (found["words"]["value"], found["words"]["unit"]) == ((9 + 3 + 0 + 2) / 4, "words")
    silent = {row["metric"]: (row["value"], row["n_items"]) for row in scores([Caption(0, ())], [set()])}
    assert silent == {"chair_s": (0, 1), "chair_i": (0, 0), "recall": (0, 0), "words": (0, 1)}


WORDS = ["hot", "cup", "cups", "baby", "fox", "thermos", "flask", "a", ",", "–", "tea-pot", "tea", "pot", "mug's", "\n"]
TEXT = st.one_of(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), st.text(max_size=30))
KITCHEN = Synonyms(
    {"person": "person", "baby": "person", "fox": "fox", "baby fox": "fox", "cup": "cup", "cups": "cup"}
    | {"hot cup": "hot cup", "hot cups": "hot cup", "thermos flask": "hot cup", "tea pot": "tea-pot"},
    2,
)


@given(TEXT, st.integers(0, 14))
def test_cutting_never_adds_a_mention_or_an_object(text: str, words: int) -> None:
    whole, part = read_caption(text, KITCHEN), cut(read_caption(text, KITCHEN), words)
    assert part.mentions == whole.mentions[: len(part.mentions)]
    assert part.words == min(words, whole.words)
    assert all(0 < end <= part.words for _, end in part.mentions)
    assert cut(whole, whole.words) == whole


@given(TEXT, TEXT)
def test_captions_set_side_by_side_add_up(first: str, second: str) -> None:
    apart = [read_caption(text, KITCHEN) for text in (first, second)]
    together = read_caption(f"{first} . {second}", KITCHEN)
    assert together.objects == apart[0].objects + apart[1].objects
    assert together.words == apart[0].words + apart[1].words


def _corpus(ids: tuple[str, ...] = ("a-0", "a-1", "b-1-0", "c-0")) -> Dataset:
    captions = {"a": ["A woman at dawn", "Woman and her vixens"], "b-1": ["still life"], "c": ["a glass"]}
    entries = [(identity, *identity.rsplit("-", 1)) for identity in ids]
    return Dataset.from_dict(
        {
            "id": list(ids),
            "image": [f"{stem};".encode() * 40 for _, stem, _ in entries],
            "caption": [captions[stem][int(k)] if stem in captions else "?" for _, stem, k in entries],
        }
    )


def test_a_folder_counts_annotated_and_captioned_objects_as_there(tmp_path: Path, kitchen: Synonyms) -> None:
    (tmp_path / "instances.json").write_text(json.dumps(INSTANCES))
    files = tmp_path / "instances.json", tmp_path / "synonyms.txt"
    table = benchmark.folder_rows(_corpus(), 10, 0, *files)
    there = {base64.b64decode(row["image"]).split(b";")[0]: json.loads(row["objects"]) for row in table}
    assert there == {b"a": ["fox", "person"], b"b-1": ["cup", "hot cup"], b"c": ["glass"]}
    assert [row["index"] for row in table] == [0, 1, 2]
    assert benchmark.folder_rows(_corpus(), 2, 0, *files) == table[:2]
    assert len({str(benchmark.folder_rows(_corpus(), 3, seed, *files)) for seed in range(9)}) > 1
    assert benchmark.synonyms(files[1]) == TABLE


def _edit(**changes: object) -> str:
    return json.dumps(INSTANCES | changes)


@pytest.mark.parametrize(
    ("instances", "table", "message"),
    [
        (None, TABLE, r"instances.json: there is no such file"),
        ("[1, 2", TABLE, r"instances.json: not JSON"),
        ("[1, 2]", TABLE, r"instances.json: not COCO's instances format"),
        (_edit(annotations=[{"image_id": 7}]), TABLE, r"instances.json: not COCO's instances format"),
        (_edit(categories=[{"id": 1, "name": 3}]), TABLE, r"instances.json: not COCO's instances format"),
        (_edit(annotations=[{"image_id": "7", "category_id": 1}]), TABLE, r"annotation of image '7', category 1"),
        (_edit(annotations=[{"image_id": 7, "category_id": 4}]), TABLE, r"annotation of image 7, category 4"),
        (_edit(images=[{"id": i, "file_name": f"{i}/a.jpg"} for i in (7, 9)]), TABLE, r"two images .* 'a'"),
        (_edit(images=INSTANCES["images"][:2]), TABLE, r"no entry for 1 of the 3 held-out pictures.*'c'"),
        (
            _edit(),
            TABLE.replace("cup, mug", "beaker"),
            r"synonyms.txt: the category 'Mug' of instances.json is not in it",
        ),
        (_edit(), None, r"synonyms.txt: there is no such file"),
        (_edit(), "\n \n", r"synonyms.txt: there is no object in it"),
        (_edit(), "cup, , mug", r"synonyms.txt: line 1 holds an empty name"),
        (_edit(), TABLE + "dog, Vixen\n", r"synonyms.txt: line 8: 'Vixen' is a name of 'fox' already"),
        (_edit(), "caf\xe9".encode("latin-1"), r"synonyms.txt: byte 3 is not UTF-8"),
    ],
)
def test_mistakes_in_a_folders_files_are_one_line(
    tmp_path: Path, instances: str | None, table: str | bytes | None, message: str
) -> None:
    if instances is not None:
        (tmp_path / "instances.json").write_text(instances)
    if table is not None:
        (tmp_path / "synonyms.txt").write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.raises(UserError, match=message) as error:
        benchmark.folder_rows(_corpus(), 3, 0, tmp_path / "instances.json", tmp_path / "synonyms.txt")
    assert "\n" not in str(error.value)


SAID = {
    "hlvlm/ntp/40k/seed0/pretrain/step8": ["a woman with a baby fox and a mug", "a mug", ""],
    "hlvlm/prior/40k/seed0/pretrain/step8": ["a woman and a baby", "None", "a glass"],
    "hlvlm/ntp/40k/seed1/pretrain/step8": ["a glass of tea", "hot cup", "tea-pot"],
}


def _predicted(folder: Path, said: dict[str, list[str]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    (folder / "CHAIR.synonyms.txt").write_text(TABLE)
    there = [["fox", "person"], ["cup"], ["cup"]]
    rows = [{"index": n, "image": "-", "objects": json.dumps(objects)} for n, objects in enumerate(there)]
    write_tsv(rows, folder / "CHAIR.tsv")
    frame = read_benchmark(folder / "CHAIR.tsv")
    for checkpoint, captions in said.items():
        # The order in which they were answered is of no account.
        shuffled = frame.assign(prediction=captions).iloc[::-1]
        write_predictions(shuffled, folder / "predictions" / checkpoint / "CHAIR.tsv")
    files = folder / "CHAIR.tsv", folder / "CHAIR.synonyms.txt", folder / "predictions"
    return score_captions(*files, list(said), None)


def test_objectives_are_compared_at_equal_length(tmp_path: Path) -> None:
    metrics, items = _predicted(tmp_path, SAID)
    assert list(metrics.columns) == METRIC_COLUMNS and list(items.columns) == ITEM_COLUMNS
    values = metrics.set_index(["objective", "seed", "metric"]).value.sort_index()
    ntp, prior, other = values["ntp", 0], values["prior", 0], values["ntp", 1]
    # 9, 2 and 0 words against 5, 1 and 2: read as far as the fifth, the first and not at all.
    assert (ntp["words"], prior["words"]) == (11 / 3, 8 / 3)
    assert ntp["words_equal"] == prior["words_equal"] == 2
    # NTP: a woman with a baby | fox and a mug; a | mug. What is cut in two is neither a fox nor a baby.
    assert (ntp["chair_i"], ntp["chair_i_equal"]) == (25, 0)
    assert (ntp["recall"], ntp["recall_equal"]) == (75, 25)
    # PRIOR: woman, baby (a person twice, and there); a glass, which is not, and cut away.
    assert prior["chair_i"] == pytest.approx(100 / 3) and prior["chair_i_equal"] == 0
    assert prior["chair_s"] == pytest.approx(100 / 3) and prior["chair_s_equal"] == 0
    # Nothing to be compared with: as it was written.
    assert all(other[metric] == other[f"{metric}_equal"] for metric in ("chair_s", "chair_i", "recall", "words"))
    keys = metrics[["arch", "scale_tokens", "stage", "step", "picture", "benchmark"]].drop_duplicates()
    assert keys.to_numpy().tolist() == [["hlvlm", 40_000, "pretrain", 8, "with", "CHAIR"]]

    first = items[(items.objective == "ntp") & (items.seed == 0)].set_index("item").loc["0"]
    assert (first.prediction, first.parsed) == (SAID["hlvlm/ntp/40k/seed0/pretrain/step8"][0], "person, fox, cup")
    assert not first.correct and first.answer == '["fox", "person"]' and first.group == "0"
    assert items.correct.tolist() == [False, True, True, True, True, False, False, False, False]
    assert items[items.objective == "prior"].prediction.tolist() == ["a woman and a baby", "None", "a glass"]


def test_an_ablation_does_not_shorten_what_the_others_are_compared_at(tmp_path: Path) -> None:
    said = {
        "hlvlm/ntp/40k/seed0/pretrain/step8": ["a woman with a baby", "a mug", "a cup"],
        "hlvlm/ntp/9k/seed0/pretrain/step8": ["a", "a", "a"],
        "hlvlm/prior/40k/seed0/pretrain/step8": ["a woman and a fox", "a cup", "a mug"],
        "hlvlm/prior/9k/seed0/pretrain/step8": ["a", "a", "a"],
        "hlvlm/prior-a4/40k/seed0/pretrain/step8": ["a fox", "a cup of tea", "mug"],
    }
    metrics, _ = _predicted(tmp_path, said)
    words = metrics[metrics.metric == "words_equal"].set_index(["objective", "scale_tokens"]).value
    assert words["ntp", 40_000] == words["prior", 40_000] == 3
    # Itself at most as long as they are: two, two and one.
    assert words["prior-a4", 40_000] == pytest.approx(5 / 3)


def test_captions_without_pictures_are_compared_among_themselves(tmp_path: Path) -> None:
    _predicted(tmp_path, SAID)
    for number, checkpoint in enumerate(SAID):
        frame = read_benchmark(tmp_path / "CHAIR.tsv").assign(prediction=["a fox and a cup"[: 5 + 10 * number]] * 3)
        write_predictions(frame, tmp_path / "predictions" / checkpoint / "CHAIR.no_picture.tsv")
    files = tmp_path / "CHAIR.tsv", tmp_path / "CHAIR.synonyms.txt", tmp_path / "predictions"
    metrics, items = score_captions(*files, list(SAID), None, no_picture=True)
    seen, _ = _predicted(tmp_path, SAID)
    pd.testing.assert_frame_equal(metrics[metrics.picture == "with"].reset_index(drop=True), seen)
    blind = metrics[metrics.picture == "without"].set_index(["objective", "seed", "metric"]).value
    # "a fox" and "a fox and a cup" of the first seed, cut to two words; the second seed stands alone.
    assert blind["ntp", 0, "words"] == blind["prior", 0, "words_equal"] == 2 and blind["prior", 0, "words"] == 5
    assert blind["ntp", 1, "words_equal"] == 5
    assert blind["prior", 0, "recall"] == 75 and blind["prior", 0, "recall_equal"] == 25
    assert items[items.picture == "without"].prediction.nunique() == 2


@given(st.data())
def test_equal_length_is_equal_and_shortens_only(data: st.DataObject) -> None:
    import tempfile

    captions = st.lists(TEXT, min_size=3, max_size=3)
    said = {f"hlvlm/{name}/40k/seed0/pretrain/step8": data.draw(captions) for name in ("ntp", "prior", "prior-a2")}
    with tempfile.TemporaryDirectory() as folder:
        metrics, _ = _predicted(Path(folder), said)
    values = metrics.pivot(index="objective", columns="metric", values=["value", "n_items"])
    assert values["value", "words_equal"].nunique() == 1
    for kind, metric in (("value", "words"), ("value", "recall"), ("value", "chair_s"), ("n_items", "chair_i")):
        assert (values[kind, f"{metric}_equal"] <= values[kind, metric]).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda frame: frame.iloc[1:], "not the benchmark's"),
        (lambda frame: pd.concat([frame, frame[:1]]), "not the benchmark's"),
        (lambda frame: frame.assign(objects="[]"), "not the benchmark's"),
        (lambda frame: frame.drop(columns="objects"), "lacks the column 'objects'"),
    ],
)
def test_predictions_of_other_pictures_are_refused(tmp_path: Path, spoil: object, message: str) -> None:
    _predicted(tmp_path, SAID)
    checkpoint = next(iter(SAID))
    path = tmp_path / "predictions" / checkpoint / "CHAIR.tsv"
    write_predictions(spoil(read_benchmark(path)), path)  # type: ignore[operator]
    files = tmp_path / "CHAIR.tsv", tmp_path / "CHAIR.synonyms.txt", tmp_path / "predictions"
    with pytest.raises(UserError, match=message):
        score_captions(*files, [checkpoint], None)
    (tmp_path / "CHAIR.synonyms.txt").write_text("cup\nperson\n")
    with pytest.raises(UserError, match=r"CHAIR.tsv: index 0: 'fox' is no object of the table"):
        score_captions(*files, [checkpoint], None)


def _imagined() -> pd.DataFrame:
    """CHAIR of a run: PRIOR makes up four points less than NTP at every scale and seed."""
    rows = []
    for arch, (gain, objective), scale, seed in product(
        ("hlvlm", "ulvlm"), enumerate(("ntp", "prior")), (40_000, 120_000, 400_000), range(3)
    ):
        key = (arch, objective, scale, seed, "pretrain", scale // 2000, "with", "CHAIR")
        values = {
            "chair_s": 60.0,
            "chair_i": 30.0 - 4 * gain + seed,
            "recall": 40.0 + gain * seed,
            "words": 14.0 + gain,
        }
        for suffix in ("", "_equal"):
            for metric, value in values.items():
                unit = "words" if metric == "words" else "percent"
                rows.append((*key, metric + suffix, value - (1 if suffix else 0), 90, unit))
    return pd.DataFrame(rows, columns=METRIC_COLUMNS)


def test_the_table_shows_differences_and_leaves_undefined_shares_blank() -> None:
    metrics = pd.concat([synthetic.metrics(benchmarks=("POPE",)), _imagined()], ignore_index=True)
    table = hallucination.table(_study(metrics)).query("picture == 'with'")
    table = table.set_index(["arch", "objective", "benchmark", "metric"])
    made_up = table.loc["hlvlm", "prior", "CHAIR", "chair_i_equal"]
    assert made_up.value == 26 and made_up.gain == -4 and (made_up.gain_low, made_up.gain_high) == (-4, -4)
    recall = table.loc["ulvlm", "prior", "CHAIR", "recall"]
    assert recall.gain == 1 and recall.gain_low < 0 < recall.gain_high
    assert (
        table.loc["ulvlm", "ntp", "POPE", "f1"].seeds == 3 and table.loc["ulvlm", "ntp", "POPE", "yes_rate"].value == 50
    )
    shown = hallucination.show(table.reset_index())
    assert [len(display.cells) for display in shown] == [6, 6]
    assert "POPE F1, %" in shown[0].cells and "POPE F1, %" not in shown[1].cells
    assert shown[1].cells.iloc[2].tolist() == [
        "H-LVLM PRIOR − NTP",
        "+0.0 ± 0.0",
        "−4.0 ± 0.0",
        "+1.0 ± 2.5",
        "+1.0 ± 0.0",
    ]

    mute = (metrics.objective == "prior") & (metrics.seed == 1) & (metrics.metric == "chair_i")
    metrics.loc[mute, ["value", "n_items"]] = [0, 0]
    table = hallucination.table(_study(metrics)).query("picture == 'with'")
    table = table.set_index(["arch", "objective", "benchmark", "metric"])
    silent = table.loc["hlvlm", "prior", "CHAIR", "chair_i"]
    assert pd.isna(silent.value) and pd.isna(silent.gain)
    assert table.loc["hlvlm", "ntp", "CHAIR", "chair_i"].value == 31


def test_other_results_are_as_they_were_without_chair(tmp_path: Path) -> None:
    metrics = synthetic.metrics(benchmarks=("MME", "POPE", "MMStar"))
    captions = _imagined()
    keys = captions[captions.metric == "chair_s"].drop(columns=["metric", "value", "n_items", "unit"])
    described = keys.assign(item="0", group="0", category="", correct=True, answer="[]", prediction="", parsed="")
    items = synthetic.items(metrics)
    plain = _study(metrics, items)
    rich = _study(
        pd.concat([metrics, captions], ignore_index=True),
        pd.concat([items, described[ITEM_COLUMNS]], ignore_index=True),
    )
    fitted, both = scaling.quantities(plain.compared), scaling.quantities(rich.compared)
    assert list(both) == list(fitted)
    for quantity, table in fitted.items():
        pd.testing.assert_frame_equal(both[quantity], table)
    names = ("main", "losses", "accuracy", "hallucination")
    for study, folder in ((plain, tmp_path / "plain"), (rich, tmp_path / "rich")):
        write_outcomes(study, folder, folder, names)
    for name in names[:3]:
        assert (tmp_path / f"plain/{name}.csv").read_bytes() == (tmp_path / f"rich/{name}.csv").read_bytes(), name
    assert "this preset has no CHAIR" in (tmp_path / "plain/hallucination.md").read_text()
    assert Image.open(tmp_path / "plain/hallucination.png").width > 400
    with pytest.raises(Missing):
        hallucination.table(plain)
    drawn = hallucination.draw(hallucination.table(rich), rich)
    assert len(drawn.axes) == 4
    assert {axes.get_ylabel() for axes in drawn.axes} == {
        "CHAIR_i (%), lower is better",
        "recall (%), higher is better",
    }


def _study(metrics: pd.DataFrame, items: pd.DataFrame | None = None) -> Study:
    items = synthetic.items(metrics[:0]) if items is None else items
    return Study("imagined", Statistics(), metrics.reset_index(drop=True), items, NO_PAPER)
