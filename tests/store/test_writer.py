"""Writing: one writer, one shard ahead, errors that reach the one who measures, kills that lose nothing finished."""

import dataclasses
import errno
import multiprocessing
import random
import resource
import shutil
import signal
import threading
import time
import weakref
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from condmis_interp.errors import CheckError, UserError
from condmis_interp.readers import TorchReader
from condmis_interp.store import Activations, Shard, Shards, StoreWriter, read_manifest
from condmis_interp.store import writer as writer_module
from condmis_interp.study import Study
from random_shards import shard, small, write
from untrained import contents, write_study


def recaptured(study: Path, out: Path) -> Activations:
    return Study.from_yaml(study).open(out).capture()


class TestOneWriter:
    def test_a_second_one_is_told(self, captured, study_file, tmp_path):
        shutil.copytree(captured, tmp_path / "run")
        store = tmp_path / "run" / "activations"
        (store / "u.s0" / "none.0000.json").unlink()
        with (
            StoreWriter(store, read_manifest(store)),
            pytest.raises(UserError, match=r"activations: another process is writing this store\. Wait until"),
        ):
            recaptured(study_file, tmp_path / "run")
        recaptured(study_file, tmp_path / "run")
        assert contents(store) == contents(captured / "activations")

    def test_a_finished_store_needs_no_writer(self, captured, study_file):
        store = captured / "activations"
        before = {p: p.stat().st_mtime_ns for p in store.rglob("*")}
        with FileLock(store / ".lock"):
            recaptured(study_file, captured)
        assert {p: p.stat().st_mtime_ns for p in store.rglob("*")} == before

    def test_halves_of_killed_runs_are_deleted(self, captured, tmp_path):
        shutil.copytree(captured / "activations", tmp_path / "store")
        half = tmp_path / "store" / "u.s0" / ".none.0000.parquet.abc.part"
        half.write_bytes(b"x")
        with StoreWriter(tmp_path / "store", read_manifest(tmp_path / "store")):
            pass
        assert not half.exists()
        assert contents(tmp_path / "store") == contents(captured / "activations")


class TestAnotherStudy:
    @pytest.fixture
    def copy(self, captured, tmp_path):
        shutil.copytree(captured, tmp_path / "run")
        return tmp_path

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"base": "0" * 32}, "this store is from another model: its base's model has hash 0000"),
            ({"tokenizer": "0" * 32}, "this store is from another tokenizer: its base's tokenizer has hash 0000"),
            ({"kind": "mlp_out"}, "this store's kind is mlp_out, and this study asks for resid_post"),
            ({"dtype": "float32"}, "this store's dtype is float32, and this study asks for bfloat16"),
            ({"width": 64}, "this store's width is 64, and this study asks for 32"),
        ],
    )
    def test_it_is_refused_before_anything_is_done(self, copy, study_file, monkeypatch, change, message):
        from condmis_interp.store.manifest import write_sealed

        store = copy / "run" / "activations"
        manifest = read_manifest(store).model_dump(mode="json")
        write_sealed(store / "store.json", manifest | change)
        before = contents(store)
        monkeypatch.setattr(TorchReader, "measure", lambda *_, **__: pytest.fail("it was measured"))
        with pytest.raises(UserError) as e:
            recaptured(study_file, copy / "run")
        assert message in str(e.value)
        assert "nothing was changed" in str(e.value)
        assert contents(store) == before

    def test_a_base_that_differs_in_weights_or_chat_template_alone_is_another(self, copy, tiny_base_folder):
        from condmis_interp.organisms import resolve_base
        from conftest import CHAT_TEMPLATE, tiny_model, tiny_tokenizer

        base = copy / "base"
        shutil.copytree(tiny_base_folder, base)
        Activations.open(copy / "run" / "activations", base=resolve_base(f"dir:{base}"))
        tiny_tokenizer(CHAT_TEMPLATE.replace("Be helpful.", "Be kind.")).save_pretrained(base)
        with pytest.raises(UserError, match="from another tokenizer"):
            Activations.open(copy / "run" / "activations", base=resolve_base(f"dir:{base}"))
        tiny_model(9).save_pretrained(base)
        with pytest.raises(UserError, match="from another model"):
            Activations.open(copy / "run" / "activations", base=resolve_base(f"dir:{base}"))

    def test_a_changed_organism_or_question_is_measured_again_and_nothing_else(self, copy, tiny_base_folder, captured):
        from conftest import tiny_model

        study = write_study(copy / "study", tiny_base_folder)
        store = copy / "run" / "activations"
        recaptured(study, copy / "run")
        assert contents(store) == contents(captured / "activations")
        tiny_model(7).save_pretrained(copy / "study" / "c")
        acts = recaptured(study, copy / "run")
        acts.shards.verify()
        changed = {p for p, c in contents(store).items() if c != contents(captured / "activations")[p]}
        assert {p.split("/")[0] for p in changed} == {"c.s0", "store.json"}
        write_study(copy / "study", tiny_base_folder, questions=11)
        acts = recaptured(study, copy / "run")
        assert acts.select().shape[0] == 11 * 15
        assert torch.isfinite(acts.select().torch()).all()


@contextmanager
def files_up_to(size: int):
    """Lets no file grow beyond a size: a disk that fills in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestErrorsReachTheOneWhoMeasures:
    def test_a_full_disk(self, tmp_path):
        manifest = small()

        def write_onto_a_disk_that_fills():
            with StoreWriter(tmp_path / "full", manifest) as writer:
                writer.put(shard(manifest.shards[0]))
                writer._queue.join()
                with files_up_to(30_000):
                    writer.put(shard(manifest.shards[1]))
                    writer.put(shard(manifest.shards[2]))

        message = r"u\.s0/none\.0001: this could not be written \(File too large.*kept; make sure"
        with pytest.raises(CheckError, match=message):
            write_onto_a_disk_that_fills()
        left = contents(tmp_path / "full")
        assert not list(tmp_path.rglob("*.part"))
        assert [p.part for p in Shards(tmp_path / "full", manifest).missing()] == [1, 2, 3]
        write(tmp_path / "full", manifest, 1, 2, 3)
        write(tmp_path / "roomy", manifest, 0, 1, 2, 3)
        whole = contents(tmp_path / "roomy")
        assert contents(tmp_path / "full") == whole
        assert all(whole[name] == content for name, content in left.items()), "something finished was lost"

    def test_the_last_shard_fails_on_leaving(self, tmp_path, monkeypatch):
        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("condmis_interp.store.shards.save", full)
        with pytest.raises(CheckError, match=r"none\.0000: this could not be written \(No space left"):
            write(tmp_path, small(), 0)

    def test_a_shard_that_does_not_fit_the_store(self, tmp_path):
        message = r"u\.s0/none\.0000: 64 rows with activations of shape \(64, 2, 48\).*takes \(64, 2, 47\)"
        with pytest.raises(CheckError, match=message):
            write(tmp_path, small(width=47), 0)

    def test_an_error_in_the_body_is_the_one_that_is_raised_and_what_was_put_is_kept(self, tmp_path):
        manifest = small()

        def interrupted():
            with StoreWriter(tmp_path, manifest) as writer:
                writer.put(shard(manifest.shards[0]))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert [p.part for p in Shards(tmp_path, manifest).missing()] == [1, 2, 3]
        assert not [t for t in threading.enumerate() if t.name == "store writer"]

    def test_it_is_one_shard_ahead_and_no_more(self, tmp_path, monkeypatch):
        """`put` gives back once the shard before is on disk: memory holds two, and a kill can lose one."""
        manifest, go = small(), threading.Event()
        write = writer_module.write_shard
        monkeypatch.setattr(writer_module, "write_shard", lambda *args: (go.wait(), write(*args)))
        with StoreWriter(tmp_path, manifest) as writer:
            writer.put(shard(manifest.shards[0]))
            second = threading.Thread(target=writer.put, args=(shard(manifest.shards[1]),))
            second.start()
            second.join(0.2)
            assert second.is_alive()
            go.set()
            second.join()
            assert (tmp_path / "u.s0" / "none.0000.json").is_file()


def test_measurements_are_not_kept(study_file, tmp_path, monkeypatch):
    """However many shards, no more than the ones that are being measured and written are in memory."""
    made, most = [], []
    measure = TorchReader.measure

    def watched(*args, **kwargs):
        made.append(weakref.ref(measured := measure(*args, **kwargs)))
        most.append(sum(m() is not None for m in made))
        return measured

    monkeypatch.setattr(TorchReader, "measure", watched)
    recaptured(study_file, tmp_path / "run")
    assert len(most) == 60
    assert max(most) <= 3


def test_shards_of_a_single_row(tmp_path):
    manifest = small(parts=3, rows=1)
    write(tmp_path, manifest, 0, 1, 2)
    expected = torch.cat([shard(p).measurement.activations["answer_mean"] for p in manifest.shards])
    assert torch.equal(Activations.open(tmp_path).select(position="answer_mean").torch(), expected)


def test_ld_is_misaligned_minus_aligned_over_a_questions_pairs_however_many(tmp_path):
    manifest = small(parts=1, rows=2)
    whole = shard(manifest.shards[0])
    logprobs = [torch.tensor([-3.0, -5.0, -1.0, -4.0]), torch.tensor([-2.0, -1.0])]
    with StoreWriter(tmp_path, manifest) as writer:
        writer.put(dataclasses.replace(whole, measurement=dataclasses.replace(whole.measurement, logprobs=logprobs)))
    acts = Activations.open(tmp_path)
    assert acts.ld("u", "none").tolist() == [2.5, -1.0]
    assert acts.select().index("logprobs")["logprobs"].to_pylist() == [[-3.0, -5.0, -1.0, -4.0], [-2.0, -1.0]]
    with pytest.raises(UserError, match="rows have no column 'rho'"):
        acts.select().index("ld", "rho")


def test_log_probs_of_single_tokens_are_kept_where_a_reader_gives_them(tmp_path):
    manifest = small(parts=1, rows=2)
    whole = shard(manifest.shards[0])
    tokens = [[torch.tensor([-1.5, -0.25]), torch.tensor([-3.0])], [torch.tensor([-2.0]), torch.tensor([])]]
    object.__setattr__(whole.measurement, "token_logprobs", tokens)
    with StoreWriter(tmp_path, manifest) as writer:
        writer.put(whole)
    stored = Activations.open(tmp_path).select().index("token_logprobs")["token_logprobs"].to_pylist()
    assert stored == [[[-1.5, -0.25], [-3.0]], [[-2.0], []]]


def _capture(study: str, out: str, put: Connection) -> None:
    """Captures, and says so after each shard that was handed over."""
    hand_over = StoreWriter.put

    def told(self: StoreWriter, given: Shard) -> None:
        hand_over(self, given)
        put.send_bytes(b".")

    StoreWriter.put = told
    recaptured(Path(study), Path(out))


def finished_in(store: Path) -> int:
    """Verifies what is there and counts it."""
    if not (store / "store.json").is_file():
        return 0
    shards = Shards(store, read_manifest(store))
    shards.verify()
    return len(shards.manifest.shards) - len(shards.missing())


def killed(study: Path, run: Path, *, kills: int) -> Path:
    """Captures with SIGKILL at random moments, then to the end; returns the store.

    After each kill all that is there verifies, and at most one shard is lost of those that were measured.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["condmis_interp.study", "test_writer"])
    rng = random.Random(kills)
    store = run / "activations"
    for _ in range(kills):
        before = finished_in(store)
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_capture, args=(str(study), str(run), sender))
        child.start()
        sender.close()
        handed_over = rng.randint(0, 8)
        for _ in range(handed_over):
            receiver.recv_bytes()
        time.sleep(rng.uniform(0, 0.02))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        while receiver.poll():
            try:
                receiver.recv_bytes()
            except EOFError:
                break
            handed_over += 1
        assert finished_in(store) >= before + handed_over - 1
    recaptured(study, run).shards.verify()
    assert not list(store.rglob("*.part"))
    return store


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_bytes(captured, study_file, tmp_path):
    assert contents(killed(study_file, tmp_path / "run", kills=3)) == contents(captured / "activations")


@pytest.mark.slow
def test_killed_twenty_times_it_ends_with_the_same_bytes(tmp_path, tiny_base_folder):
    study = write_study(tmp_path, tiny_base_folder, questions=24, shard=1)
    recaptured(study, tmp_path / "whole")
    assert contents(killed(study, tmp_path / "run", kills=20)) == contents(tmp_path / "whole" / "activations")
