"""Reading torch files: both formats by hand-made examples, and everything that must be refused."""

import hashlib
import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from walt.autoencoder.torch_file import MAGIC, PROTOCOL, TorchFileError, read_tensors

LETTERS = np.arange(24, dtype="<f4")
STEPS = np.array([7], "<i8")
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"


def tensor(key, kind, elements, offset, shape, strides, view=b"N") -> bytes:
    """What torch pickles for one tensor: a call of its rebuild function on a storage it names by key."""
    storage = b"(" + text("storage") + b"ctorch\n" + kind + b"\n" + text(key) + text("cpu")
    storage += b"J" + struct.pack("<i", elements) + view + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    offset_ = b"J" + struct.pack("<i", offset)
    return REBUILD + b"(" + storage + offset_ + numbers(*shape) + numbers(*strides) + b"\x89" + hooks + b"tR"


def program(**values: bytes) -> bytes:
    """A pickle of an ordered dict."""
    items = b"".join(text(name) + value for name, value in values.items())
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u."


def legacy(body: bytes, storages: dict[str, np.ndarray], little_endian: bool = True) -> bytes:
    facts = {"protocol_version": PROTOCOL, "little_endian": little_endian, "type_sizes": {"short": 2}}
    head = b"".join(pickle.dumps(value, 2) for value in (MAGIC, PROTOCOL, facts))
    raw = b"".join(struct.pack("<q", array.size) + array.tobytes() for array in storages.values())
    return head + body + pickle.dumps(list(storages), 2) + raw


def zipped(body: bytes, storages: dict[str, np.ndarray], byteorder: bytes = b"little") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("example/data.pkl", body)
        archive.writestr("example/byteorder", byteorder)
        for key, array in storages.items():
            archive.writestr(f"example/data/{key}", array.tobytes())
    return file.getvalue()


def read(tmp_path, data: bytes):
    file = tmp_path / "example.pth"
    file.write_bytes(data)
    return read_tensors(file, hashlib.sha256(data).hexdigest())


def whole(key="a", **other) -> bytes:
    return tensor(
        **{"key": key, "kind": b"FloatStorage", "elements": 24, "offset": 0, "shape": (24,), "strides": (1,), **other}
    )


GOOD = program(
    weight=whole(shape=(2, 3, 4), strides=(12, 4, 1)),
    transposed=whole(offset=12, shape=(4, 3), strides=(1, 4)),
    empty=whole(offset=24, shape=(0, 5), strides=(5, 1)),
    steps=tensor("b", b"LongStorage", 1, 0, (), ()),
)
STORAGES = {"a": LETTERS, "b": STEPS}


@pytest.mark.parametrize("pack", [legacy, zipped])
def test_reads_shapes_strides_and_types(tmp_path, pack):
    tensors = read(tmp_path, pack(GOOD, STORAGES))
    assert list(tensors) == ["weight", "transposed", "empty", "steps"]
    np.testing.assert_array_equal(tensors["weight"], LETTERS.reshape(2, 3, 4))
    np.testing.assert_array_equal(tensors["transposed"], LETTERS[12:].reshape(3, 4).T)
    assert tensors["empty"].shape == (0, 5)
    assert tensors["steps"].dtype == np.int64 and tensors["steps"] == 7
    tensors["weight"][:] = 0  # of its own: nothing else moves
    assert tensors["transposed"].any()


@pytest.mark.parametrize("pack", [legacy, zipped])
@pytest.mark.parametrize(
    "name",
    ["os.system", "posix.system", "builtins.eval", "torch.load", "numpy.load", "collections.OrderedDict.fromkeys"],
)
def test_refuses_any_other_name(tmp_path, pack, name):
    module, _, attribute = name.partition(".")
    target = tmp_path / "ran"
    call = (
        b"\x80\x04" + b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute)) + b"\x93"
    )
    body = call + b"(" + text(f"touch {target}") + b"tR."
    with pytest.raises(TorchFileError, match=rf"example.pth names {name}, which a file of tensors has no need of"):
        read(tmp_path, pack(body, {}))
    assert not target.exists()


@pytest.mark.parametrize("global_", [REBUILD, b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n"])
def test_nothing_a_pickle_names_can_be_changed_by_it(tmp_path, global_):
    body = b"\x80\x02" + global_ + b"N}" + text("dtype") + text("<f8") + b"s\x86b."  # BUILD with attributes to set
    with pytest.raises(TorchFileError, match="not a readable torch file"):
        read(tmp_path, legacy(body, {}))
    np.testing.assert_array_equal(read(tmp_path, legacy(GOOD, STORAGES))["weight"].ravel(), LETTERS)


def test_a_wrong_checksum_is_found_before_anything_is_read(tmp_path):
    file = tmp_path / "example.pth"
    file.write_bytes(b"\x80\x02cos\nsystem\n.")
    with pytest.raises(
        TorchFileError, match=r"damaged or another file: its SHA-256 is [0-9a-f]{64} and should be 0{64}"
    ):
        read_tensors(file, "0" * 64)
    with pytest.raises(TorchFileError, match="cannot be read: No such file"):
        read_tensors(tmp_path / "none.pth", "0" * 64)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (legacy(program(a=whole(offset=1)), STORAGES), "reaches beyond its storage of 24"),
        (legacy(program(a=whole(strides=(2,))), STORAGES), "reaches beyond its storage"),
        (legacy(program(a=whole(offset=-1)), STORAGES), "reaches beyond its storage"),
        (legacy(program(a=whole(strides=(-1,))), STORAGES), "reaches beyond its storage"),
        (legacy(program(a=whole(elements=2**30)), STORAGES), "storage a would be larger than the file"),
        (legacy(program(a=whole(elements=25)), {"a": LETTERS}), "has 24 elements and should have 25"),
        (legacy(GOOD, {"a": LETTERS}), "ends before storage b"),
        (legacy(GOOD, STORAGES, little_endian=False), "big-endian"),
        (zipped(GOOD, STORAGES, byteorder=b"big"), "big-endian"),
        (zipped(GOOD, {"a": LETTERS}), "not a readable torch file"),
        (legacy(program(a=whole(view=numbers(1, 2, 3))), STORAGES), "only whole storages"),
        (legacy(program(a=text("no tensor")), {}), "something else than a dict of tensors"),
        (legacy(b"\x80\x02K\x01.", {}), "something else than a dict of tensors"),
        (legacy(program(a=whole(shape=(9, 9), strides=(0, 0))), STORAGES), "reaches beyond its storage"),
        (
            legacy(
                program(**{f"t{i}": whole("b", elements=2000, shape=(2000,)) for i in range(99)}),
                {"b": np.zeros(2000, "<f4")},
            ),
            "together far larger than the file",
        ),
        (legacy(program(a=whole(), b=whole("b")), {"a": LETTERS[:5], "b": LETTERS[:5]}), "should have 24"),
        (legacy(b"\x80\x02}K\x01K\x02s.", {}), "a dict whose keys are not texts"),
        (legacy(b"\x80\x02c__builtin__\nset\n.", {}), "names __builtin__.set"),
        (legacy(b"\x80\x02]\x90.", {}), "the instruction ADDITEMS is none that tensors need"),
        (legacy(b"\x80\x02Nr\xff\xff\xff\xffj\xff\xff\xff\xff\x86.", {}), "something else than a dict of tensors"),
        (legacy(b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".", {}), "something else than a dict"),
        (legacy(b"\x80\x02" + b")" + b"\x85" * 10**5 + b".", {}), "something else than a dict"),
        (pickle.dumps(1) * 2, "does not begin as one"),
        (b"", "not a readable torch file"),
        (bytes(range(64)), "not a readable torch file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_refuses_what_does_not_add_up(tmp_path, data, message):
    with pytest.raises(TorchFileError, match=message):
        read(tmp_path, data)


def test_a_zip_file_that_unpacks_into_more_than_it_is_is_not_unpacked(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("example/data.pkl", GOOD)
        archive.writestr("example/data/a", bytes(2**20))
    with pytest.raises(TorchFileError, match="would unpack into more than it is"):
        read(tmp_path, file.getvalue())


@pytest.mark.parametrize("pack", [legacy, zipped])
def test_any_beginning_of_a_file_is_refused(tmp_path, pack):
    data = pack(GOOD, STORAGES)
    for length in range(0, len(data), 11):
        with pytest.raises(TorchFileError):
            read(tmp_path, data[:length])


def test_torchscript_modules_give_their_tensors_by_name(tmp_path):
    """A module in a module, as `torch.jit.save` writes them; their other attributes are no tensors."""
    lists = b"ctorch.jit._pickle\nbuild_intlist\n((lK\x01atR"
    inner = (
        b"c__torch__.there\nInner\n)\x81}("
        + text("weight")
        + tensor("0", b"FloatStorage", 24, 0, (4, 6), (6, 1))
        + b"ub"
    )
    outer = (
        b"c__torch__\nOuter\n)\x81}("
        + text("training")
        + b"\x89"
        + text("sizes")
        + lists
        + text("inner")
        + inner
        + b"ub"
    )
    arrays = read(tmp_path, zipped(b"\x80\x02" + outer + b".", {"0": LETTERS}))
    assert list(arrays) == ["inner.weight"] and np.array_equal(arrays["inner.weight"], LETTERS.reshape(4, 6))
