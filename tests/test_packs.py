import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from fake_hub import fake_hub
from published import BLOCK_NETWORK, as_hub_cache, write_biomedclip, write_surgenet
from safetensors.torch import load_file, save_file

import entrep
from entrep.artifacts import hash_folder, read_json, sha256_file, write_json
from entrep.encoders import load_backbone, load_encoder
from entrep.packs import fetch_pack, make_pack, probe_pictures, verify_pack, write_pack
from entrep.registry import BIOMEDBERT, BIOMEDCLIP, ENCODERS, find_packs, read_pack, weights_folder

SPEC = ENCODERS["biomedclip"]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """BiomedCLIP's two repositories, in small."""
    return write_biomedclip(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def packed(published, tmp_path_factory):
    """A pack of them, which no test may change."""
    return make_pack("biomedclip", published, tmp_path_factory.mktemp("packs") / "biomedclip")


@pytest.fixture
def copied(packed, tmp_path):
    """A copy of the pack, to be damaged."""
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def write_vit(folder: Path, *, seed: int = 0, **arguments) -> Path:
    """A `test_vit` of timm (0.4 M parameters, 160 px) in a .pth."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(timm.create_model("test_vit", **arguments).state_dict(), folder / "vit.pth")
    return folder / "vit.pth"


# --- what a pack holds -----------------------------------------------------------------------


def test_a_pack_holds_all_that_the_encoder_needs(packed):
    files = set(hash_folder(packed))
    assert files >= {"open_clip_model.safetensors", "open_clip_config.json", "pack.json"}
    assert files >= {"NOTICE.txt", "LICENSE.md", "README.md", "text/config.json", "text/vocab.txt"}
    spec, manifest = read_pack(packed)
    assert (spec.name, spec.width, spec.image_size, spec.licence) == ("biomedclip", 16, 224, "MIT")
    assert manifest["files"].keys() == files - {"pack.json"}
    assert all(len(entry["sha256"]) == 64 for entry in manifest["files"].values())
    assert len(manifest["fingerprint"]["pictures"]) == len(manifest["fingerprint"]["texts"]) == 2
    assert "(" not in json.dumps(manifest["files"])


def test_packing_twice_gives_the_same_bytes(published, packed, tmp_path):
    again = make_pack("biomedclip", published, tmp_path / "again")
    assert hash_folder(again) == hash_folder(packed)


def test_a_pack_made_of_a_pack_computes_the_same(packed, tmp_path):
    again = make_pack("biomedclip", [packed], tmp_path / "again")
    assert (
        read_json(again / "pack.json")["fingerprint"]
        == (read_json(packed / "pack.json")["fingerprint"])
    )


def test_the_card_is_that_of_the_model_not_of_its_text_tower(published, tmp_path):
    model, tower = (shutil.copytree(path, tmp_path / path.name) for path in published)
    (Path(tower) / "README.md").write_text("the tower's card")
    (Path(model) / "NOTICE.txt").write_text("a notice of theirs")
    pack = make_pack("biomedclip", [model, tower], tmp_path / "pack")
    assert "library_name: open_clip" in (pack / "README.md").read_text()
    assert (pack / "NOTICE-source.txt").read_text() == "a notice of theirs"
    assert "source: hub:microsoft/BiomedCLIP" in (pack / "NOTICE.txt").read_text()


def test_the_commit_of_a_hubs_cache_is_noted(published, tmp_path):
    as_hub_cache(published[0], tmp_path / "hub", BIOMEDCLIP, commit="abc")
    as_hub_cache(published[1], tmp_path / "hub", BIOMEDBERT, commit="def")
    pack = make_pack("biomedclip", [tmp_path], tmp_path / "pack")
    assert read_json(pack / "pack.json")["revision"] == "abc"
    assert "revision: abc" in (pack / "NOTICE.txt").read_text()
    assert not any(path.is_symlink() for path in pack.rglob("*"))
    assert "all as packed" in verify_pack(pack)


def test_a_tokenizer_of_a_vocabulary_alone_does(published, packed, tmp_path):
    shutil.copy(published[0] / "open_clip_pytorch_model.bin", tmp_path)
    shutil.copy(published[0] / "open_clip_config.json", tmp_path)
    shutil.copy(published[1] / "vocab.txt", tmp_path)
    shutil.copy(published[1] / "config.json", tmp_path)
    pack = make_pack("biomedclip", [tmp_path], tmp_path / "pack")
    texts = ["A polyp in the LEFT nasal cavity.", "normal ear drum"]
    one, other = (
        load_encoder("biomedclip", device="cpu", weights_dir=folder).encode_texts(texts)
        for folder in (pack, packed)
    )
    torch.testing.assert_close(one, other)


def test_a_named_file_beats_the_others(published, tmp_path):
    one = write_vit(tmp_path / "one", seed=1)
    write_vit(tmp_path / "two", seed=2)
    (tmp_path / "two" / "vit.pth").rename(tmp_path / "two" / "pytorch_model.bin")
    pack = make_pack("timm:test_vit", [tmp_path / "two", one], tmp_path / "pack")
    packed = load_file(pack / "model.safetensors")
    assert torch.equal(packed["cls_token"], torch.load(one)["cls_token"])


def test_dinov2_with_registers_is_known_by_its_tensors(tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, img_size=336)
    state = network.state_dict()
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.randn(1, 577, 384)  # Meta's has one for the class token, too
    state["mask_token"] = torch.zeros(1, 384)
    torch.save(state, tmp_path / "x.pth")
    pack = make_pack("surgenet-dinov2-s", [tmp_path / "x.pth"], tmp_path / "pack")
    assert read_pack(pack)[0].architecture == "vit_small_patch14_reg4_dinov2"
    assert read_json(pack / "config.json")["architecture"] == "vit_small_patch14_reg4_dinov2"
    assert "all as packed" in verify_pack(pack)


# --- verify ----------------------------------------------------------------------------------


def test_a_sound_pack_is_described_in_a_line(packed):
    assert "biomedclip: 10 files" in verify_pack(packed)
    for shipped in ("demo-clip", "demo-dino"):
        assert "embeddings agree" in verify_pack(weights_folder() / shipped)


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "text/vocab.txt", "LICENSE.md"])
def test_a_changed_byte_is_found(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[-1] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} differ from the manifest"):
        verify_pack(copied)


def test_a_missing_file_is_found(copied):
    (copied / "text" / "vocab.txt").unlink()
    with pytest.raises(FileNotFoundError, match="vocab.txt: the pack lacks this file"):
        verify_pack(copied)


def test_a_file_that_was_cut_off_is_found(copied):
    content = (copied / "open_clip_model.safetensors").read_bytes()
    (copied / "open_clip_model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ValueError, match="bytes, the pack's manifest says"):
        verify_pack(copied)
    with pytest.raises(ValueError, match="copy the pack again"):
        load_encoder("biomedclip", weights_dir=copied)


def test_a_surplus_file_is_found(copied):
    (copied / "text" / "chat_template.jinja").write_text("{{ x }}")
    with pytest.raises(ValueError, match="text/chat_template.jinja do not belong to the pack"):
        verify_pack(copied)


def test_other_embeddings_than_those_of_the_maker_are_found(copied):
    manifest = read_json(copied / "pack.json")
    row = np.array(manifest["fingerprint"]["texts"][1].split(), dtype=float)
    manifest["fingerprint"]["texts"][1] = " ".join(f"{x:.6f}" for x in np.roll(row, 1))
    write_json(copied / "pack.json", manifest)
    with pytest.raises(ValueError, match="files are whole, but .* other embeddings .*cosine"):
        verify_pack(copied)


def test_weights_exchanged_with_their_digest_are_found_by_the_embeddings(copied):
    weights = load_file(copied / "open_clip_model.safetensors")
    weights["visual.head.proj.weight"] = weights["visual.head.proj.weight"].flip(0)
    save_file(weights, copied / "open_clip_model.safetensors")
    manifest = read_json(copied / "pack.json")
    entry = manifest["files"]["open_clip_model.safetensors"]
    entry["sha256"] = sha256_file(copied / "open_clip_model.safetensors")
    entry["bytes"] = (copied / "open_clip_model.safetensors").stat().st_size
    write_json(copied / "pack.json", manifest)
    with pytest.raises(ValueError, match="other embeddings"):
        verify_pack(copied)


def test_what_is_no_pack_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="this folder is no pack"):
        verify_pack(tmp_path)


# --- loading ---------------------------------------------------------------------------------

LOAD = """
import sys
from entrep.encoders import load_encoder
from entrep.packs import probe_pictures, PROBE_TEXTS
for name, weights_dir in (sys.argv[1:3], sys.argv[3:5]):
    encoder = load_encoder(name, device="cpu", weights_dir=weights_dir)
    print(encoder.encode_pictures(probe_pictures(encoder.spec.image_size))[1].tolist())
    print(encoder.encode_texts(PROBE_TEXTS)[1].tolist())
"""


def load_cut_off(*names_and_folders: str, home: Path) -> list[list[float]]:
    """Load and embed in a fresh interpreter without any network; its home is empty."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(entrep.__file__).parents[1]),
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", BLOCK_NETWORK + LOAD, *names_and_folders]
    if sys.platform == "linux" and os.geteuid() == 0 and shutil.which("setpriv"):
        # Even root may then write only where the permissions say so.
        command = ["setpriv", "--bounding-set=-dac_override", *command]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def test_a_read_only_pack_of_any_name_loads_without_a_network(packed, tmp_path):
    folder = tmp_path / "mein Päck@224 (v1.0)" / "x@336"
    shutil.copytree(packed, folder)
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    stored = read_json(packed / "pack.json")["fingerprint"]
    try:
        pictures, texts, *again = load_cut_off(
            f"local-dir:{folder}", "", "biomedclip", str(folder.parent), home=tmp_path / "home"
        )
        assert again == [pictures, texts]
        assert hash_folder(folder) == hash_folder(packed)
        assert not (tmp_path / "home").exists() or not hash_folder(tmp_path / "home")
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)  # pytest wants to remove it
    np.testing.assert_allclose(pictures, np.array(stored["pictures"][1].split(), float), atol=1e-4)
    np.testing.assert_allclose(texts, np.array(stored["texts"][1].split(), float), atol=1e-4)


def test_packs_load_by_name_folder_and_place(packed):
    encoders = [
        load_encoder("biomedclip", device="cpu", weights_dir=packed),
        load_encoder("biomedclip", device="cpu", weights_dir=packed.parent),
        load_encoder(f"local-dir:{packed}", device="cpu"),
    ]
    assert len({encoder.fingerprint for encoder in encoders}) == 1
    assert encoders[0].spec.name == "biomedclip"


def test_a_pack_named_as_a_hubs_repository_loads_by_that_name(published, tmp_path):
    pack = make_pack("hf-hub:someone/clip", published, tmp_path / "packs" / "any")
    assert read_pack(pack)[0].source == "hub:someone/clip"
    encoder = load_encoder("hf-hub:someone/clip", device="cpu", weights_dir=tmp_path / "packs")
    assert encoder.encode_texts(["a polyp"]).shape == (1, 16)
    with pytest.raises(ValueError, match="only its files say what it is"):
        load_encoder("hf-hub:someone/clip", device="cpu")


def test_a_folder_that_says_itself_what_it_is_can_be_packed(published, tmp_path):
    pack = make_pack(f"local-dir:{published[0]}", published, tmp_path / "pack")
    spec, _ = read_pack(pack)
    assert (spec.family, spec.licence, spec.source) == ("joint", "mit", "file")
    assert "all as packed" in verify_pack(pack)


def test_two_packs_of_one_name_are_ambiguous_until_one_is_named(tmp_path):
    for seed in (1, 2):
        file = write_vit(tmp_path / f"source{seed}", seed=seed)
        make_pack("timm:test_vit", [file], tmp_path / "packs" / str(seed))
    with pytest.raises(ValueError, match="are different packs of timm:test_vit"):
        load_encoder("timm:test_vit", weights_dir=tmp_path / "packs")
    encoder = load_encoder(f"local-dir:{tmp_path / 'packs' / '2'}", device="cpu")
    assert encoder.spec.name == "timm:test_vit"


def test_a_pack_may_be_used_at_another_size(packed, tmp_path):
    encoder = load_encoder("biomedclip@192", device="cpu", weights_dir=packed)
    assert encoder.spec.image_size == 192
    assert encoder.encode_pictures(probe_pictures(192)).shape == (2, 16)
    native = load_encoder("biomedclip", device="cpu", weights_dir=packed)
    assert native.fingerprint != encoder.fingerprint
    with pytest.raises(ValueError, match="patches of 16 px and 200 is no multiple.*192 or 208"):
        load_encoder("biomedclip@200", device="cpu", weights_dir=packed)


def test_surgenet_is_packed_at_336_and_used_at_any_multiple_of_14(tmp_path, capsys):
    state = write_surgenet(tmp_path / "mine.pth", "vit_small_patch14_dinov2", image_size=336)
    pack = make_pack("surgenet-dinov2-s", [tmp_path / "mine.pth"], tmp_path / "packs" / "s")
    encoder = load_encoder("surgenet-dinov2-s@224", device="cpu", weights_dir=pack)
    assert "NOT for commercial use" in capsys.readouterr().out
    assert encoder.encode_pictures(probe_pictures(224)).shape == (2, 768)
    network, mean, _ = load_backbone("surgenet-dinov2-s", image_size=98, weights_dir=pack.parent)
    assert network.patch_embed.img_size == (98, 98) and mean == ENCODERS["dinov2-s"].mean
    assert torch.equal(network.cls_token, state["cls_token"])


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_vit4"])
def test_any_network_of_timm_can_be_packed(tmp_path, name):
    torch.manual_seed(0)
    save_file(timm.create_model(name).state_dict(), tmp_path / "model.safetensors")
    pack = make_pack(f"timm:{name}", [tmp_path / "model.safetensors"], tmp_path / "pack")
    spec, _ = read_pack(pack)
    encoder = load_encoder(f"timm:{name}@192", device="cpu", weights_dir=pack)
    assert encoder.encode_pictures(probe_pictures(192)).shape == (2, spec.width)


# --- nothing half-written --------------------------------------------------------------------


def test_weights_that_do_not_fit_leave_nothing_behind(published, tmp_path):
    vit = write_vit(tmp_path / "source")
    to = tmp_path / "packs" / "biomedclip"
    with pytest.raises(ValueError, match="vit.pth fill 0 of .*another network"):
        make_pack("biomedclip", [vit, *published], to)
    assert list(to.parent.iterdir()) == []


def test_an_unsafe_pickle_leaves_nothing_behind(tmp_path):
    torch.save({"w": torch.ones(2), "path": Path("x")}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="any code"):
        make_pack("timm:test_vit", [tmp_path / "x.pth"], tmp_path / "pack")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_a_folder_in_use_is_not_overwritten(tmp_path):
    vit = write_vit(tmp_path / "source")
    with pytest.raises(ValueError, match="source is not empty; give a new folder"):
        make_pack("timm:test_vit", [vit], tmp_path / "source")
    (tmp_path / "empty").mkdir()
    assert make_pack("timm:test_vit", [vit], tmp_path / "empty") == tmp_path / "empty"


def test_a_size_has_no_place_in_a_packs_name(tmp_path):
    with pytest.raises(ValueError, match="write @ where you load it"):
        make_pack("surgenet-dinov2-b@224", [tmp_path], tmp_path / "pack")


def test_a_pack_is_loaded_back_before_it_counts(tmp_path):
    spec = dataclasses.replace(ENCODERS["dinov2-s"], name="mine", architecture="test_vit")
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    config = {"model_args": {}}
    spec = dataclasses.replace(spec, image_size=160)
    write_pack(tmp_path / "mine", spec, state, config)
    assert find_packs(tmp_path) == {tmp_path / "mine": "mine"}
    state["surprise"] = torch.ones(3)
    with pytest.raises(ValueError, match="no place for .surprise"):
        write_pack(tmp_path / "other", spec, state, config)


# --- fetching from a hub on this machine -----------------------------------------------------


@pytest.fixture
def hub(published, monkeypatch):
    """A hub with BiomedCLIP at the commits that the registry pins."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 65536)
    with fake_hub() as server:
        server.add(BIOMEDCLIP, published[0], SPEC.revision)
        server.add(BIOMEDBERT, published[1], SPEC.text_source.partition("@")[2])
        yield server


def fetch(hub, tmp_path: Path, name: str = "biomedclip", **options) -> Path:
    options = {"wait": lambda seconds: None} | options
    cache = tmp_path / "cache"
    return fetch_pack(name, tmp_path / "pack", endpoint=hub.endpoint, cache_dir=cache, **options)


def test_fetching_gives_the_pack_that_the_files_give(hub, packed, tmp_path):
    pack = fetch(hub, tmp_path)
    assert read_json(pack / "pack.json")["revision"] == SPEC.revision
    assert (
        read_json(pack / "pack.json")["fingerprint"]
        == (read_json(packed / "pack.json")["fingerprint"])
    )
    assert "all as packed" in verify_pack(pack)
    # The pinned commits are what was asked for, and nothing that is not needed.
    paths = [path for _, path, _ in hub.requests]
    assert f"/api/models/{BIOMEDCLIP}/revision/{SPEC.revision}" in paths
    assert not any("/main" in path for path in paths)
    assert (
        hub.served["open_clip_pytorch_model.bin"]
        == (hub.repositories[BIOMEDCLIP] / "open_clip_pytorch_model.bin").stat().st_size
    )


def test_a_revision_may_be_named(hub, tmp_path):
    pack = fetch(hub, tmp_path, revision="main")
    assert read_json(pack / "pack.json")["revision"] == SPEC.revision
    with pytest.raises(RuntimeError, match="the hub refused .404"):
        fetch_pack("biomedclip", tmp_path / "b", revision="v9", endpoint=hub.endpoint)


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(hub, tmp_path):
    name = "open_clip_pytorch_model.bin"
    size = (hub.repositories[BIOMEDCLIP] / name).stat().st_size
    hub.break_off[name] = 3_000_000
    fetch(hub, tmp_path)
    ranges = [r for method, path, r in hub.requests if method == "GET" and path.endswith(name)]
    assert ranges[0] == "" and ranges[1].startswith("bytes=")
    assert int(ranges[1][6:].rstrip("-").partition("-")[0]) > 2_900_000
    assert hub.served[name] <= size + 100_000


def test_a_hub_in_trouble_is_asked_again_after_a_while(hub, tmp_path):
    waits = []
    hub.failures = [503, 500, 429]
    fetch(hub, tmp_path, wait=waits.append)
    assert waits == [1, 2, 4]


def test_what_arrived_is_not_asked_for_again(hub, tmp_path):
    fetch(hub, tmp_path)
    served = dict(hub.served)
    shutil.rmtree(tmp_path / "pack")
    fetch(hub, tmp_path)
    assert hub.served == served


def test_a_hub_that_stays_in_trouble_is_one_error(hub, tmp_path):
    hub.failures = [502] * 50
    with pytest.raises(RuntimeError, match="could not be reached in 3 tries.*same command again"):
        fetch(hub, tmp_path, attempts=3)
    assert not (tmp_path / "pack").exists()


def test_a_hub_that_is_not_there_is_one_error(hub, tmp_path):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(RuntimeError, match="could not be reached in 2 tries"):
        fetch(hub, tmp_path, attempts=2)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_hub_that_refuses_is_one_error_at_once(hub, tmp_path, status):
    waits = []
    hub.failures = [status] * 9
    with pytest.raises(
        RuntimeError, match=rf"BiomedCLIP\S+: the hub refused \({status}\)"
    ) as error:
        fetch(hub, tmp_path, wait=waits.append)
    assert waits == [] and "\n" not in str(error.value)


def test_a_hub_that_is_switched_off_is_one_error(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match="switched off .HF_HUB_OFFLINE."):
        fetch(hub, tmp_path)
    assert hub.requests == []


def test_a_repository_without_weights_is_told(hub, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("soon")
    hub.add("someone/soon", tmp_path / "empty")
    with pytest.raises(ValueError, match="someone/soon at main has none of .*it holds README.md"):
        fetch(hub, tmp_path, "hf-hub:someone/soon")


def test_any_repository_can_be_fetched_by_its_name(hub, tmp_path):
    hub.add("someone/clip", hub.repositories[BIOMEDCLIP])
    hub.commits[BIOMEDBERT] = "f" * 40
    pack = fetch(hub, tmp_path, "hf-hub:someone/clip")
    assert read_pack(pack)[0].source == "hub:someone/clip"
    assert read_pack(pack)[1]["revision"] == hub.commits["someone/clip"]


def test_what_has_no_repository_is_not_fetched(tmp_path):
    with pytest.raises(ValueError, match="demo-clip has no repository on the hub"):
        fetch_pack("demo-clip", tmp_path / "pack")
    with pytest.raises(ValueError, match="no name of a repository"):
        fetch_pack("hf-hub:a b//c", tmp_path / "pack", wait=lambda seconds: None)
