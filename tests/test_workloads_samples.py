"""Readers of real data, on small files of the same form; and the stand-ins where there are none.

What loads torchvision or scikit-learn is imported where it is used, for every worker collects every file.
"""

import gzip
import json
import pickle
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from workloads import mrt_oast, samples


def write_idx(path: Path, values: numpy.ndarray) -> None:
    head = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    data = head + values.astype(numpy.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("name", ["t10k-{}-idx{}-ubyte", "MNIST/raw/t10k-{}-idx{}-ubyte.gz"])
def test_mnist_is_read_from_idx_files(tmp_path: Path, name: str) -> None:
    images = numpy.arange(3 * 28 * 28).reshape(3, 28, 28) % 256
    write_idx(tmp_path / name.format("images", 3), images)
    write_idx(tmp_path / name.format("labels", 1), numpy.array([7, 0, 9]))

    digits = samples.mnist(tmp_path, "t10k")

    assert (digits.kind, len(digits)) == (samples.REAL, 3)
    assert torch.equal(digits.images, torch.from_numpy(images).to(torch.uint8))
    assert [digits.label(index) for index in range(3)] == [7, 0, 9]


def test_half_of_mnist_or_a_torn_file_is_an_error_and_not_synthetic(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    write_idx(path, numpy.zeros((2, 28, 28)))
    with pytest.raises(FileNotFoundError, match="train-labels-idx1-ubyte"):
        samples.mnist(tmp_path, "train")
    for content, said in (
        (path.read_bytes()[:-1], "expected 1568 values, found 1567"),
        (b"<html>not found</html>", "expected an idx file"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            samples.mnist(tmp_path, "train")


def test_synthetic_digits_stand_for_all_and_are_the_same_every_time(tmp_path: Path) -> None:
    train, test = samples.mnist(tmp_path, "train"), samples.mnist(tmp_path, "t10k")
    for digits, length in ((train, 60_000), (test, 10_000)):
        assert (digits.kind, len(digits)) == (samples.SYNTHETIC, length)
        assert digits.image(length - 1).shape == (28, 28)
        assert digits.image(0).dtype == torch.uint8
        assert {digits.label(index) for index in range(100)} == set(range(10))
    assert not torch.equal(train.images, test.images)
    assert torch.equal(train.images, samples.mnist(tmp_path, "train").images)


def test_siamese_pairs_are_of_one_digit_at_even_numbers() -> None:
    from workloads import siamese

    images = torch.arange(200, dtype=torch.uint8)[:, None, None].expand(200, 28, 28)  # each shows its own number
    pairs = siamese.Pairs(samples.Digits(images, torch.arange(200) % 10, 10_000, samples.SYNTHETIC))

    for index in range(50):
        first, second, target = pairs[index]
        numbers = int(first.max()), int(second.max())  # raw pixels, not normalised
        assert (numbers[0] % 10 == numbers[1] % 10) == bool(target) == (index % 2 == 0)
        assert numbers[0] != numbers[1]


def test_cifar_is_read_from_its_python_batches(tmp_path: Path) -> None:
    from workloads import resnet20

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number in range(1, 6):
        pixels = numpy.full((2, 3072), number, dtype=numpy.uint8)
        (folder / f"data_batch_{number}").write_bytes(pickle.dumps({b"data": pixels, b"labels": [number, 0]}))

    images = resnet20.Images(tmp_path, "train")

    image, label = images[8]
    assert (images.kind, len(images), int(label)) == (samples.REAL, 10, 5)
    assert (image.shape, image.dtype) == ((3, 32, 32), torch.float32)
    assert images.images[8].unique().tolist() == [5]


def test_market_is_read_from_a_folder_per_identity(tmp_path: Path) -> None:
    from workloads import pcb

    for split in ("train_all", "val"):
        for identity in ("0002", "0007"):
            folder = tmp_path / "Market-1501" / "pytorch" / split / identity
            folder.mkdir(parents=True)
            Image.new("RGB", (64, 128), "red").save(folder / f"{identity}_c1s1.jpg")

    train_set, val_set, kind = pcb.load(tmp_path)

    image, identity = train_set[1]
    assert (kind, len(train_set), len(val_set), identity) == (samples.REAL, 2, 2, 1)
    assert (image.shape, image.dtype) == ((3, 384, 192), torch.float32)


def write_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True)
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcdefghijklmnopqrstuvwxyz(){};=+1_", "in", "int"]
    (folder / "drapgh-vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "drapgh-merges.txt").write_text("#version: 0.2\ni n\nin t\n")


def test_d2a_is_read_cut_and_padded(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "d2a" / "tokenizer")
    long = "a " * 3000
    (tmp_path / "d2a" / "d2a_lbv1_function_train.csv").write_text(
        f'id,label,code\n1,1,"int a; // no"\n2,0,"/* a\n b */ x"\n3,0,"{long}"\n'
    )

    functions = samples.d2a(tmp_path, "train")

    vocabulary = json.loads((tmp_path / "d2a" / "tokenizer" / "drapgh-vocab.json").read_text())
    tokens, mask, label = functions[0]
    assert (functions.kind, len(functions), tokens.shape, int(label)) == (samples.REAL, 3, (1024,), 1)
    assert tokens[:6].tolist() == [0, vocabulary["int"], vocabulary["a"], vocabulary[";"], 2, 1]
    assert mask.sum() == 5
    assert functions[1][0][:4].tolist() == [0, vocabulary["x"], 2, 1]
    assert functions[2][1].sum() == 1024
    assert functions[2][0][-1] == 2
    assert functions.class_weights().tolist() == pytest.approx([3 / 4, 3 / 2])


def test_c_code_is_split_as_a_lexer_does() -> None:
    words = samples.C_TOKEN.findall(r'if (p->n >= 0x1F && *s != \'"\') s++, t = "a \" b";'.replace("\\'", "'"))

    assert words == [
        *["if", "(", "p", "->", "n", ">=", "0x1F", "&&", "*", "s", "!=", "'\"'", ")", "s", "++", ",", "t", "="],
        *[r'"a \" b"', ";"],
    ]


@pytest.mark.parametrize(("split", "length"), [("train", 4643), ("dev", 596)])
def test_synthetic_functions_are_padded_behind(tmp_path: Path, split: str, length: int) -> None:
    functions = samples.d2a(tmp_path, split)

    assert (functions.kind, len(functions)) == (samples.SYNTHETIC, length)
    for index in range(samples.D2A_POOL):
        tokens, mask, _ = functions[index]
        size = int(mask.sum())
        assert mask[:size].all()
        assert (tokens[0], tokens[size - 1]) == (0, 2)
        assert tokens.max() < samples.D2A_VOCABULARY
    assert max(int(functions[index][1].sum()) for index in range(samples.D2A_POOL)) == 1024


def test_ojclone_is_read_from_token_arrays(tmp_path: Path) -> None:
    folder = tmp_path / "ojclone"
    folder.mkdir()
    tokens = numpy.tile(numpy.arange(256) % 114, (3, 1))
    numpy.savez(folder / "programs.npz", preorder=tokens, postorder=tokens[:, ::-1], length=numpy.array([1, 2, 256]))
    numpy.save(folder / "train_pairs.npy", numpy.array([[0, 1, 1], [1, 2, 0]]))
    numpy.save(folder / "valid_pairs.npy", numpy.array([[0, 2, 0]]))

    programs, train_pairs, valid_pairs = mrt_oast.ojclone(tmp_path)

    first = train_pairs[1]
    assert (programs.kind, len(programs), len(train_pairs), len(valid_pairs)) == (samples.REAL, 3, 2, 1)
    assert [int(first[2].sum()), int(first[5].sum()), first[6].item()] == [2, 256, 0.0]
    assert first[0].tolist() == tokens[1].tolist()


def test_synthetic_clones_are_of_one_class(tmp_path: Path) -> None:
    programs, train_pairs, valid_pairs = mrt_oast.ojclone(tmp_path)

    first, second, is_clone = train_pairs.rows.T
    assert (len(programs), len(train_pairs), len(valid_pairs)) == (7_500, 40_000, 5_000)
    assert torch.equal((first % 15 == second % 15), is_clone.bool())
    assert is_clone.float().mean() == 0.5
    assert (first != second).all()
    assert int(programs.preorder.max()) <= 113
    assert torch.equal(programs.preorder > 0, programs.mask)
    assert torch.equal(programs.postorder > 0, programs.mask)


def test_shuffled_batches_drop_the_incomplete_one() -> None:
    batches = mrt_oast.ShuffledBatches(num_pairs=10, batch_size=4, seed=0)

    epochs = [list(batches), list(batches)]

    assert [len(batch) for batch in epochs[0]] == [4, 4]
    assert len(batches) == 2
    assert epochs[0] != epochs[1]


def test_features_are_read_by_column_name(tmp_path: Path) -> None:
    from workloads import bug_localization

    folder = tmp_path / "bug-localization"
    folder.mkdir()
    (folder / "features.csv").write_text(
        "report_id,file,rVSM_similarity,collab_filter,classname_similarity,bug_recency,bug_frequency,match\n"
        "84,a/B.java,0.1,0.2,0.3,0.4,0.5,1\n7,c/D.java,0,0,0,0,0,0\n84,e/F.java,1,1,1,1,1,0\n"
    )

    rows = bug_localization.load(tmp_path)

    assert (rows.kind, rows.features[0].tolist()) == ("real", [0.1, 0.2, 0.3, 0.4, 0.5])
    assert rows.matches.tolist() == [1.0, 0.0, 0.0]
    assert rows.reports.tolist() == [1, 0, 1]


def test_hit_rates_look_at_the_best_files_of_each_report() -> None:
    from workloads import bug_localization

    class ByFirstFeature:
        def predict(self, features: numpy.ndarray) -> numpy.ndarray:
            return features[:, 0]

    features = numpy.array([[0.9], [0.5], [0.1], [0.9], [0.5]])
    matches = numpy.array([1.0, 0.0, 0.0, 0.0, 1.0])
    rows = bug_localization.Rows(features, matches, numpy.array([0, 0, 0, 1, 1]), "synthetic")

    rates = bug_localization.hit_rates(ByFirstFeature(), rows, numpy.array([0, 1]))

    assert (rates["top1_accuracy"], rates["top5_accuracy"]) == (0.5, 1.0)
