import numpy as np
import pytest
from PIL import Image

from tfdetr_keras.cli import main
from tfdetr_keras.data import load_yolo
from tfdetr_keras.data.files import MISSING
from tfdetr_keras.data.validation import EMPTY_BOX
from tfdetr_keras.data.yolo import FAULTY_FILES, FAULTY_LINES, LABELS_WITHOUT_IMAGE, NO_LABELS

LINE = "1 0.5 0.5 0.5 0.25"  # in an image 40 wide and 20 high:
BOX = [10, 7.5, 30, 12.5]


def as_arrays(dataset):
    return list(dataset.as_numpy_iterator())


def test_a_folder_by_hand(write):
    folder = write(
        **{
            "images/a.png": Image,
            "labels/a.txt": f"{LINE}\n\n0 0.1 0.1 0.4 0.4\n",
            "images/sub/b.JPG": Image,
            "labels/sub/b.txt": "0 0.5 0.5 1 1",
            "images/none.webp": Image,
            "images/empty.bmp": Image,
            "labels/empty.txt": "",
            "images/notes.md": "not an image",
            "labels/classes.txt": "cat\ndog\n",
        }
    )
    dataset, names = load_yolo(folder)
    assert names == ["cat", "dog"]
    assert dataset.tally.counts() == {}
    by_size = {len(record["labels"]): record for record in as_arrays(dataset)}
    assert dataset.cardinality() == 4
    np.testing.assert_allclose(by_size[2]["boxes"], [BOX, [0, 0, 12, 6]], atol=1e-5)
    np.testing.assert_allclose(by_size[2]["area"], [100, 72], rtol=1e-5)
    np.testing.assert_array_equal(by_size[2]["labels"], [1, 0])
    np.testing.assert_array_equal(by_size[1]["boxes"], [[0, 0, 40, 20]])
    assert by_size[0]["boxes"].shape == (0, 4)


def test_polygons_become_their_boxes(write):
    line = "0 0.25 0.5 0.75 0.5 0.5 1.0"
    (record,) = as_arrays(load_yolo(write(**{"images/a.png": Image, "labels/a.txt": line, "classes.txt": "cat"}))[0])
    np.testing.assert_array_equal(record["boxes"], [[10, 10, 30, 20]])


@pytest.mark.parametrize(
    ("shape", "rest"), [("[2, 3]", " 0.1 0.2 2 0.9 0.8 0"), ("[3, 2]", " 0 0 0.9 0.8 1 1"), ("[1, 2]", " 0.9 0.9")]
)
def test_keypoints_are_no_polygon(write, shape, rest):
    files = {"images/a.png": Image, "data.yaml": f"train: images\nnames: [cat, dog]\nkpt_shape: {shape}"}
    (record,) = as_arrays(load_yolo(write(**files, **{"labels/a.txt": LINE + rest}))[0])
    np.testing.assert_allclose(record["boxes"], [BOX])
    for faulty in (LINE, f"{LINE}{rest} 0.5", f"{LINE}{rest} 0.5 0.5", "0 0.25 0.5 0.75 0.5 0.5 1.0 0.5 0.5"):
        folder = write(**{"labels/a.txt": f"{LINE}{rest}\n{faulty}"})
        with pytest.raises(
            ValueError, match=r"a\.txt, line 2: .* is not class cx cy w h and the \d numbers of kpt_shape"
        ):
            load_yolo(folder)
        dataset, _ = load_yolo(folder, on_error="skip")
        assert dataset.tally.counts() == {FAULTY_LINES: 1}
        np.testing.assert_allclose(as_arrays(dataset)[0]["boxes"], [BOX])


SET = {"images/a.png": Image, "labels/a.txt": LINE}


@pytest.mark.parametrize(
    "names",
    ["names: [cat, dog]", "names:\n- cat\n- dog", "names: {1: dog, 0: cat}", "names:\n  0: cat\n  1: dog", "nc: 2"],
)
@pytest.mark.parametrize("file", ["data.yaml", "data.yml", "mine.yaml"])
def test_names_of_the_yaml_file(write, names, file):
    folder = write(**SET, **{file: f"train: images\n{names}\n", "obj.names": "cat\r\ndog\r\n"})
    assert load_yolo(folder)[1] == ["cat", "dog"]


@pytest.mark.parametrize(
    "train",
    [
        "train: images/train",
        "train: ./images/train",
        "train: ../images/train",
        "train: images\\train",
        "train: ..\\images\\train",
        "path: /home/somebody/set\ntrain: images/train",
        "path: C:\\Users\\somebody\ntrain: images/train",
        "path: .\ntrain: images/train",
        "path:\ntrain: images/train",
        "train: [images/train]",
        "train: [images/train/x, images/train/y]",
        "train: train.txt",
        "train: lists/train.txt",
    ],
)
def test_where_a_split_may_be(write, train):
    folder = write(
        **{
            "data.yaml": b"\xef\xbb\xbf" + f"{train}\r\nval: images/val\r\nnames: [cat, dog]\r\n".encode(),
            "images/train/x/a.png": Image,
            "images/train/y/b.png": Image,
            "labels/train/x/a.txt": LINE,
            "images/val/c.png": Image,
            "labels/val/c.txt": LINE,
            "train.txt": "./images/train/x/a.png\nimages\\train\\y\\b.png\n",
            "lists/train.txt": b"\xef\xbb\xbf../images/train/x/a.png\r\n\r\n../images/train/y/b.png\r\n",
        }
    )
    for split in (None, "train"):
        dataset, _ = load_yolo(folder, split)
        assert [record["labels"].tolist() for record in as_arrays(dataset)] == [[1], []]
        assert dataset.tally.counts() == {}
    assert len(as_arrays(load_yolo(folder, "val")[0])) == 1


@pytest.mark.parametrize("command", ["inspect-data", "train", "evaluate"])
def test_the_command_line_says_what_is_read_without_a_split(write, capsys, command):
    """As the reader does it: `train` of the YAML file, or all of the folder `images`."""
    files = {"images/train/a.png": Image, "images/val/b.png": Image, "labels/train/a.txt": LINE, "classes.txt": "a\nb"}
    assert len(load_yolo(write(**files))[0]) == 2
    assert len(load_yolo(write(**{"data.yaml": "train: images/train\nnames: [a, b]"}))[0]) == 1
    with pytest.raises(SystemExit):
        main([command, "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "(default: train; of a yolo set whose YAML file names none, all of its folder images)" in told


def test_an_export_that_looks_beside_its_folder(write):
    """Roboflow's: the YAML file is in the folder that holds train/ and valid/."""
    folder = write(
        **{
            "data.yaml": "train: ../train/images\nval: ../valid/images\nnames: ['cat', 'dog']",
            "train/images/a.png": Image,
            "train/labels/a.txt": LINE,
            "valid/images/b.png": Image,
            "valid/labels/b.txt": LINE,
        }
    )
    for split in ("train", "val", "valid"):
        assert len(as_arrays(load_yolo(folder, split)[0])) == 1
    with pytest.raises(ValueError, match=r"has no split 'test'; its splits are: train, val, valid$"):
        load_yolo(folder, "test")


def test_splits_without_a_yaml_file(write):
    folder = write(**{"images/val/a.png": Image, "labels/val/a.txt": LINE, "images/b.png": Image})
    assert len(as_arrays(load_yolo(folder, "val", ["cat", "dog"])[0])) == 1
    assert len(as_arrays(load_yolo(folder, class_names=["cat", "dog"])[0])) == 2
    with pytest.raises(ValueError, match=r"has no split 'test'; its splits are: val$"):
        load_yolo(folder, "test", ["cat", "dog"])


def test_splits_with_folders_of_their_own(write):
    folder = write(
        **{
            "train/images/a.png": Image,
            "train/labels/a.txt": LINE,
            "valid/images/b.png": Image,
            "valid/images/c.png": Image,
            "valid/labels/b.txt": LINE,
            "classes.txt": "cat\ndog",
            "notes/a.txt": "no split",
        }
    )
    for split, count in {"train": 1, "valid": 2, "val": 2}.items():
        dataset, names = load_yolo(folder, split)
        assert [record["labels"].tolist() for record in as_arrays(dataset)] == [[1], []][:count]
        assert names == ["cat", "dog"]
    for split, missing in {"test": "split 'test'", None: "folder images"}.items():
        with pytest.raises(ValueError, match=f"has no {missing}; its splits are: train, valid$"):
            load_yolo(folder, split)


def test_val_and_valid_are_two_where_both_are_there(write):
    files = {f"images/{split}/{split}.png": Image for split in ("val", "valid")}
    folder = write(**files, **{"labels/val/val.txt": LINE, "labels/valid/valid.txt": f"{LINE}\n{LINE}"})
    for split, count in {"val": 1, "valid": 2}.items():
        (record,) = as_arrays(load_yolo(folder, split, ["cat", "dog"])[0])
        assert len(record["labels"]) == count


def test_linked_folders(write):
    """Images and labels elsewhere belong to the set; a link back up does not repeat it for ever."""
    folder = write(**{f"set/{name}": content for name, content in SET.items()}) / "set"
    write(**{"elsewhere/b.png": Image, "texts/b.txt": f"{LINE}\n{LINE}"})
    for place, target in {"images/extra": "elsewhere", "labels/extra": "texts", "images/loop": "set/images"}.items():
        (folder / place).symlink_to(folder.parent / target)
    (folder.parent / "elsewhere/back").symlink_to(folder / "images")
    dataset, _ = load_yolo(folder, class_names=["cat", "dog"])
    assert [len(record["labels"]) for record in as_arrays(dataset)] == [1, 2]
    write(**{"texts/stray.txt": LINE})
    with pytest.raises(ValueError, match=r"labels/extra/stray\.txt is the label file of no image"):
        load_yolo(folder, class_names=["cat", "dog"])


def test_a_split_by_list_is_not_disturbed_by_the_others(write):
    folder = write(
        **{
            "data.yaml": "train: train.txt\nval: val.txt\nnames: [cat, dog]",
            "train.txt": "images/a.png",
            "val.txt": "images/b.png",
            "images/a.png": Image,
            "images/b.png": Image,
            "labels/a.txt": LINE,
            "labels/b.txt": LINE,
        }
    )
    for split in ("train", "val"):
        dataset, _ = load_yolo(folder, split)
        assert len(as_arrays(dataset)) == 1
        assert dataset.tally.counts() == {}


def test_labels_beside_their_images(write):
    folder = write(**{"train/a.png": Image, "train/a.txt": LINE, "data.yaml": "train: train\nnames: [cat, dog]"})
    (record,) = as_arrays(load_yolo(folder)[0])
    np.testing.assert_allclose(record["boxes"], [BOX])


def test_only_the_last_folder_of_that_name_counts(write):
    folder = write(**{f"images/labels/{name}": content for name, content in SET.items()})
    assert len(as_arrays(load_yolo(folder / "images/labels", class_names=["cat", "dog"])[0])[0]["labels"]) == 1


def test_labels_from_windows(write):
    folder = write(**SET | {"labels/a.txt": b"\xef\xbb\xbf" + f"{LINE}\r\n{LINE}\r\n\r\n".encode()})
    assert len(as_arrays(load_yolo(folder, class_names=["cat", "dog"])[0])[0]["labels"]) == 2


FAULTS = [
    ("1 0.5 0.5 0.5", r"a\.txt, line 2: '1 0\.5 0\.5 0\.5' is neither class cx cy w h nor", FAULTY_LINES),
    ("1 0.5 0.5 0.5 0.5 0.9", r"a\.txt, line 2: .* is neither", FAULTY_LINES),
    ("1", r"a\.txt, line 2: '1' is neither", FAULTY_LINES),
    ("cat 0.5 0.5 0.5 0.5", r"a\.txt, line 2: 'cat 0\.5 .* is not numbers", FAULTY_LINES),
    ("1,0.5,0.5,0.5,0.5", r"a\.txt, line 2: .* is not numbers", FAULTY_LINES),
    ("0.5 0.5 0.5 0.5 0.5", r"a\.txt, line 2: the class 0\.5 is not a whole number", FAULTY_LINES),
    ("inf 0.5 0.5 0.5 0.5", r"a\.txt, line 2: the class inf is not", FAULTY_LINES),
    ("nan 0.5 0.5 0.5 0.5", r"a\.txt, line 2: the class nan is not", FAULTY_LINES),
    ("1e30 0.5 0.5 0.5 0.5", r"a\.txt, line 2: the class 1e\+30 is not", FAULTY_LINES),
    ("2 0.5 0.5 0.5 0.5", r"a\.txt, line 2 has a label outside 0\.\.1", "labels that are no class"),
    ("-1 0.5 0.5 0.5 0.5", r"a\.txt, line 2 has a label outside 0\.\.1", "labels that are no class"),
    ("1 0.5 nan 0.5 0.5", r"a\.txt, line 2 has a box with a non-finite", "non-finite boxes"),
    ("1 0.5 0.5 -0.5 0.5", r"a\.txt, line 2 has a box with x2 < x1", "inverted boxes"),
]


@pytest.mark.parametrize(("line", "complaint", "kind"), FAULTS)
def test_a_bad_line_is_explained_or_skipped_and_counted(write, line, complaint, kind):
    folder = write(**SET | {"labels/a.txt": f"{LINE}\n{line}\n{LINE}"})
    with pytest.raises(ValueError, match=complaint):
        load_yolo(folder, class_names=["cat", "dog"])
    dataset, _ = load_yolo(folder, class_names=["cat", "dog"], on_error="skip")
    assert dataset.tally.counts() == {kind: 1}
    np.testing.assert_allclose(as_arrays(dataset)[0]["boxes"], [BOX, BOX])


@pytest.mark.parametrize("line", ["1 0.5 0.5 0 0.5", "1 1.5 0.5 0.5 0.5", "0 0.1 0.1 0.1 0.2 0.1 0.3"])
def test_boxes_that_cover_nothing_are_counted(write, line):
    dataset, _ = load_yolo(write(**SET | {"labels/a.txt": f"{LINE}\n{line}"}), class_names=["cat", "dog"])
    assert dataset.tally.counts() == {EMPTY_BOX: 1}
    assert r"a.txt, line 2" in str(dataset.tally)
    assert len(as_arrays(dataset)[0]["boxes"]) == 1


@pytest.mark.parametrize("content", [LINE.encode("utf-16"), b"\xff\x00\x80"])
def test_a_label_file_that_is_no_text(write, content):
    folder = write(**SET | {"images/b.png": Image, "labels/b.txt": content})
    with pytest.raises(ValueError, match=r"b\.txt is not UTF-8 text"):
        load_yolo(folder, class_names=["cat", "dog"])
    dataset, _ = load_yolo(folder, class_names=["cat", "dog"], on_error="skip")
    assert dataset.tally.counts() == {FAULTY_FILES: 1}


@pytest.mark.parametrize("stray", ["labels/b.txt", "labels/sub/b.txt", "labels/A.TXT"])
def test_a_label_file_without_its_image(write, stray):
    folder = write(**SET | {stray: LINE, "labels/notes.md": "no label file"})
    with pytest.raises(ValueError, match=f"{stray[7:]} is the label file of no image"):
        load_yolo(folder, class_names=["cat", "dog"])
    dataset, _ = load_yolo(folder, class_names=["cat", "dog"], on_error="skip")
    assert dataset.tally.counts() == {LABELS_WITHOUT_IMAGE: 1}


def test_no_label_file_at_all(write):
    """Rather a wrong folder than a set of nothing but background."""
    folder = write(**{"images/a.png": Image, "Labels/a.txt": LINE})
    with pytest.raises(
        ValueError, match=r"no image has a label file; that of .*images/a\.png would be .*labels/a\.txt"
    ):
        load_yolo(folder, class_names=["cat"])
    dataset, _ = load_yolo(folder, class_names=["cat"], on_error="skip")
    assert dataset.tally.counts() == {NO_LABELS: 1}
    assert len(as_arrays(dataset)) == 1


def test_a_listed_image_that_is_missing(write):
    folder = write(
        **SET | {"train.txt": "images/a.png\nimages/lost.png", "data.yaml": "train: train.txt\nnames: [a, b]"}
    )
    with pytest.raises(ValueError, match=r"lost\.png, does not exist; 1 of 2 image files are missing"):
        load_yolo(folder)
    dataset, _ = load_yolo(folder, on_error="skip")
    assert dataset.tally.counts() == {MISSING: 1}
    assert len(as_arrays(dataset)) == 1


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "does not name its classes: give class_names"),
        ({"data.yaml": "train: images\nnames: cat"}, "does not name its classes"),
        ({"data.yaml": "train: images\nnames: []"}, "does not name its classes"),
        ({"data.yaml": "train: images\nnames: {1: cat, 2: dog}"}, r"must be numbered 0 \.\. 1"),
        ({"data.yaml": "train: [\nnames"}, r"data\.yaml is not valid YAML"),
        ({"data.yaml": 'path: "C:\\data"'}, r"data\.yaml is not valid YAML"),
        ({"data.yaml": b"names: [gr\xf6\xdfe]"}, r"data\.yaml is not UTF-8 text"),
        ({"data.yaml": ""}, r"data\.yaml does not describe a set"),
        ({"data.yaml": "- cat"}, r"data\.yaml does not describe a set"),
        *(
            (
                {"data.yaml": f"names: [a, b]\nkpt_shape: {shape}"},
                r"data\.yaml: kpt_shape must be \[number of keypoints",
            )
            for shape in ("17", "[17]", "[17, 4]", "[0, 3]", "[-1, 2]", "[a, 3]", "[1.5, 2]", "[2, 3, 3]", "{a: b}")
        ),
        ({"data.yaml": "train: photos\nnames: [cat]"}, "names photos, which does not exist"),
        ({"data.yaml": "train: 5\nnames: [cat]"}, "names 5, which does not exist"),
        ({"data.yaml": "train: {a: b}\nnames: [cat]"}, "which does not exist"),
        ({"data.yaml": "train: none\nnames: [cat]", "none/a.txt": LINE}, "the set is empty: there is no image in"),
        ({"data.yaml": "train: list.txt\nnames: [cat]", "list.txt": "\n"}, "the set is empty"),
        ({"data.yaml": "train: list.txt\nnames: [cat]", "list.txt": b"\xff.png"}, r"list\.txt is not UTF-8"),
    ],
)
def test_a_bad_description(write, files, complaint):
    folder = write(**SET, **files)
    for on_error in ("raise", "skip"):
        with pytest.raises(ValueError, match=complaint):
            load_yolo(folder, on_error=on_error)


def test_nothing_to_read(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        load_yolo(tmp_path / "lost")
    with pytest.raises(ValueError, match="has no folder images; its splits are: none"):
        load_yolo(tmp_path, class_names=["cat"])


def test_ids_are_the_numbers_of_the_names_or_places(write):
    def ids(*names):
        folder = write(**{f"{names[0]}/images/{name}.png": Image for name in names})
        write(**{f"{names[0]}/labels/{names[0]}.txt": LINE})
        return [int(record["image_id"]) for record in as_arrays(load_yolo(folder / names[0], None, ["a", "b"])[0])]

    assert ids("000000000009", "25") == [9, 25]
    assert ids("x9", "25") == [0, 1]
    assert ids("9" * 19, "25") == [0, 1]
